"""
Kills training runs at random moments and shows that nothing is lost: the run that was killed
again and again ends with the weights, the optimizer's state and the log of a run that nobody
touched, bit for bit.

    python tools/faults.py                    # 50 kills of each of four runs: half an hour
    python tools/faults.py --kills=5 --processes=2 --dtype=bfloat16
    python tools/faults.py clumsy             # what people do to programs: a row each
    python tools/faults.py clumsy --only=plot # the rows that hold this word

Every second kill waits for a checkpoint that is being written. SIGKILL cannot be caught: what
is on the disk at that moment is all that is left.

Contents
    1 a run             start, wait_for, finish
    2 killing it        kill_at_random, kill_all, kill_again_and_again
    3 is it the same?   final_state, torture
    4 clumsy            Row, ROWS, make_things, try_row, clumsy
    5 the command line  main
"""
import argparse
import contextlib
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FLAGS = ("--device=cpu --tokenizer=char --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 "
         "--T=32 --B=2 --total_batch_size=128 --warmup_steps=2 --max_lr=1e-2 --min_lr=1e-3 "
         "--eval_every=50 --val_tokens=500 --dropout=0.1 --no-hellaswag --keep_last=2 "
         "--resume=auto").split()

# -------------------------------------------------------------------------------------------------
# 1 a run

def start(processes, log_dir, *flags):
    """
    Start train_gpt2.py with FLAGS and further flags -> subprocess.Popen. It is in a process
    group of its own, so that all its processes can be killed at one instant.
    """
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone",
                   f"--nproc_per_node={processes}"]
    program = os.path.join(ROOT, "train_gpt2.py")
    command = [*python, program, *FLAGS, f"--log_dir={log_dir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, cwd=log_dir, start_new_session=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(run, text):
    """Read what a run prints until a line holds the text -> that line, or None at its end."""
    for line in run.stdout:
        if text in line:
            return line
    return None


def finish(run):
    """Wait for the end of a run. AssertionError with what it printed unless it ended well."""
    printed, _ = run.communicate()
    assert run.returncode == 0, printed


# -------------------------------------------------------------------------------------------------
# 2 killing it

def half_written(log_dir):
    """The files that a run is writing, or could not finish, by their temporary names."""
    return [name for name in os.listdir(log_dir) if ".tmp" in name]


def kill_at_random(run, log_dir, during_save, rng):
    """
    SIGKILL a run within half a second after its first step; during_save: when it next writes
    a checkpoint. -> whether it was killed, or had ended before.
    """
    if wait_for(run, "| loss:") is None:
        return False
    end = time.time() + rng.uniform(0, 0.5)
    # no sleep: a checkpoint this small is written in a few milliseconds
    while run.poll() is None:
        is_time = half_written(log_dir) if during_save else time.time() >= end
        if is_time:
            break
    if run.poll() is not None:
        return False
    kill_all(run)
    return True


def family(pid):
    """A process and those that it has started, and so on -> their numbers (Linux)"""
    found = [pid]
    with contextlib.suppress(OSError):  # it has ended
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            for child in f.read().split():
                found += family(int(child))
    return found


def kill_all(run):
    """
    SIGKILL a run's processes. torchrun gives each of its own a process group, so killing torchrun's
    would leave them behind: they would go on training, and hold the lock of log_dir.
    """
    pids = family(run.pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run.wait()
    end = time.time() + 10
    while any(is_alive(pid) for pid in pids) and time.time() < end:
        time.sleep(0.01)


def is_alive(pid):
    """Does a process still hold files and locks? One that waits to be reaped does not (Linux)."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kill_again_and_again(kills, processes, log_dir, flags, rng):
    """
    Start a run and kill it, `kills` times, or fewer if it comes to its end -> how many kills
    there were, and how many of them inside a write. AssertionError if it ends badly.
    """
    done = 0
    inside = 0
    while done < kills:
        run = start(processes, log_dir, *flags)
        during_save = done % 2 == 1
        if not kill_at_random(run, log_dir, during_save, rng):
            finish(run)
            break
        done += 1
        if half_written(log_dir):
            inside += 1
    return done, inside


# -------------------------------------------------------------------------------------------------
# 3 is it the same?

def final_state(log_dir, steps):
    """The tensors of the last checkpoint by name (dict), and the lines of the log but times."""
    path = os.path.join(log_dir, f"model_{steps:05d}.pt")
    checkpoint = torch.load(path, weights_only=True)
    tensors = dict(checkpoint["model"])
    for name, moments in checkpoint["optimizer"]["state"].items():
        for key, moment in moments.items():
            tensors[f"{name}.{key}"] = moment
    with open(os.path.join(log_dir, "log.txt")) as f:
        lines = [line for line in f if line.split()[1] != "dt"]  # step stream value
    return tensors, lines


def torture(folder, kills, steps, processes, dtype, seed=0):
    """
    A run that nobody touches, and one that is killed `kills` times, both in folder -> how many
    kills there were, and how many of them inside a write. AssertionError if the two differ.
    """
    rng = random.Random(seed)
    flags = (f"--data_root={os.path.join(ROOT, 'input.txt')}", f"--dtype={dtype}",
             f"--max_steps={steps}", "--save_every=5")
    whole = os.path.join(folder, "whole")
    parts = os.path.join(folder, "parts")
    os.makedirs(whole)
    os.makedirs(parts)

    finish(start(processes, whole, *flags))
    done, inside = kill_again_and_again(kills, processes, parts, flags, rng)
    finish(start(processes, parts, *flags))
    assert not half_written(parts), half_written(parts)

    tensors, log = final_state(whole, steps)
    other_tensors, other_log = final_state(parts, steps)
    assert len(log) >= 3 * steps, "the log lacks lines"
    assert log == other_log, "the logs differ"
    assert tensors.keys() == other_tensors.keys(), "the checkpoints hold other names"
    for name, tensor in tensors.items():
        assert tensor.equal(other_tensors[name]), f"{name} differs"
    return done, inside


# -------------------------------------------------------------------------------------------------
# 4 clumsy: what people do to programs

# A row is a line of bash, run in an empty directory. These are the commands in it; what it may
# need lies in ../made (see make_things)
COMMANDS = """
set -o pipefail
tiny="--device=cpu --tokenizer=char --n_layer=1 --n_head=2 --n_embd=8 --block_size=32 --T=32
      --B=2 --total_batch_size=64 --warmup_steps=0 --max_steps=4 --eval_every=0 --val_tokens=64
      --save_every=2 --no-hellaswag --data_root=../made/text.txt"
train() { "$PYTHON" "$ROOT/train_gpt2.py" $tiny "$@"; }
gpt2() { train --tokenizer=gpt2 "$@"; }
resume() { cp -r ../made/log log; train --resume=auto --max_steps=6 "$@"; }
resume_odd() { train --resume="../made/$1.pt" --log_dir=log --max_steps=6; }
# start a program, send it a signal as soon as it prints some words, and end with its exit code.
# (set -m: otherwise bash lets what it starts in the background ignore Ctrl-C)
signal() {
  set -m
  "$PYTHON" "$ROOT/$3" "${@:4}" > out 2>&1 &
  until grep -q "$2" out; do sleep 0.1; done
  kill -s "$1" $!
  wait $!
  code=$?
  cat out
  return $code
}
play() { "$PYTHON" "$ROOT/play.py" "$@"; }
plot() { play plot "$@" --out=plot.svg; }
fineweb() { "$PYTHON" "$ROOT/fineweb.py" --out=shards "$@"; }
documents() { fineweb --files=../made/documents.jsonl "$@"; }
score() { "$PYTHON" "$ROOT/hellaswag.py" --model=../made/gpt2.pt --device=cpu --data="$1"; }
log() { mkdir -p "$1"; printf '0 train 4.5\\n1 train 4.4\\n' > "$1/log.txt"; }
deep() { "$PYTHON" -c 'print("[" * 100000)'; }
# a package of this name that is not there, for Python: PYTHONPATH=.
without() { mkdir "$1"; echo "raise ModuleNotFoundError(name='$1')" > "$1/__init__.py"; }
here() { cp -r "$ROOT"/*.py "$ROOT/support" .; ROOT=.; }
"""


class Row(NamedTuple):
    """Something that somebody does, and what should come of it."""
    did: str
    line: str  # of bash
    code: int  # the exit code that is right
    says: str  # what must stand in the output


ROWS = [
    # 1 a program touches only what it has made
    Row("shards beside my notes.tmp2024", "cp ../made/documents.jsonl . && echo mine > "
        "notes.tmp2024 && fineweb --files=documents.jsonl --out=. && cat notes.tmp2024", 0, "mine"),
    Row("a log beside my report.tmp1.docx", "mkdir log && echo mine > log/report.tmp1.docx && "
        "train && cat log/report.tmp1.docx", 0, "mine"),
    Row("--log_dir is the program", 'train --log_dir="$ROOT"', 2, "folder of the program"),
    Row("--log_dir is a home", 'HOME="$PWD" train --log_dir=.', 2, "folder of a home"),
    Row("a checkpoint that names my folder", "mkdir keys && echo mine > keys/settings.json && "
        "train --init_from=../made/stranger.pt && cat keys/settings.json", 0, "mine"),
    Row("my own model_best.pt in the log", "mkdir log && echo mine > log/model_best.pt && "
        "train --keep_last=1 && cat log/model_best.pt", 0, "mine"),
    Row("a copy, model_00009_backup.pt", "mkdir log; touch log/model_00009_backup.pt; resume", 0,
        "step     5"),
    # 2 resume does what it says
    Row("another weight decay on resume", "resume --weight_decay=20", 0, "weight_decay 0.1 -> 20"),
    Row("back to an older checkpoint", "resume --resume=log/model_00002.pt && ls log/old_*", 0,
        "model_00004.pt"),
    Row("--max_steps below the steps done", "resume --max_steps=2", 2, "has done 4 steps"),
    Row("other data on resume", "head -c 15000 ../made/text.txt > b; resume --data_root=b", 2,
        "the data have changed"),
    Row("a lost connection", "signal HUP loss: train_gpt2.py $tiny --max_steps=1000000 "
        "--save_every=500000", 0, "stopped by SIGHUP"),
    Row("SIGTERM, and --save_every=0", "signal TERM loss: train_gpt2.py $tiny "
        "--max_steps=1000000 --save_every=0", 0, "no checkpoint"),
    # 3 a final checkpoint is not lost over something small
    Row("a terminal in ASCII", "PYTHONIOENCODING=ascii train; ls log", 0, "model_00004.pt"),
    Row("| head", "train | head -1; ls log", 0, "model_00004.pt"),
    Row("> /dev/full", "train > /dev/full; ls log", 0, "model_00004.pt"),
    Row("stderr is closed", "train 2>&-; ls log", 0, "model_00004.pt"),
    Row("stdout is closed", "train >&-; ls log", 0, "model_00004.pt"),
    Row("--val_tokens below T", "train --val_tokens=5", 2, "try --val_tokens=32"),
    Row("HellaSwag endings longer than the context", "score ../made/long.jsonl", 0, "acc_norm"),
    Row("the log directory is deleted", "(until [ -e log/log.txt ]; do sleep 0.1; done; rm -r "
        "log) & train --max_steps=3000 --save_every=0 && ls log", 0, "log.txt"),
    # 4 no wrong numbers without a word
    Row("WORLD_SIZE without RANK", "WORLD_SIZE=2 train", 2, "start with torchrun"),
    Row("a text in UTF-16", "iconv -t UTF-16 ../made/text.txt > b; train --data_root=b", 2,
        "iconv"),
    Row("a text in Latin-1", r"printf 'caf\xe9 %.0s' {1..999} > b; train --data_root=b", 2,
        "iconv"),
    Row("a .gz as a text", "gzip -c ../made/text.txt > b; train --data_root=b", 2, "gunzip"),
    Row("a checkpoint as a text", "train --data_root=../made/gpt2.pt", 2, "--init_from"),
    Row("a shard that meta.json does not list", "cp -r ../made/shards .; cp "
        "shards/edufineweb_train_00000{1,9}.npy; gpt2 --data_root=shards", 0, "000009.npy"),
    Row("a file edited to the same size", "cp ../made/documents.jsonl b.jsonl; "
        "fineweb --files=b.jsonl --shard_size=2000 --max_shards=2; sed -i s/th/ht/ b.jsonl; "
        "fineweb --files=b.jsonl --shard_size=2000", 2, "have been edited"),
    Row("weights in int8", "play info ../made/int8.pt", 2, "int8"),
    # 5 nothing waits, or takes for ever
    Row("one of two processes", "RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 "
        "MASTER_PORT=29517 train --dist_timeout_s=3", 1, "did not meet"),
    Row("plot: two million lines", "plot ../made/long", 0, "wrote plot.svg"),
    # 6 a line instead of a traceback
    Row("a seed over 9e9", "train --seed=99999999999", 2, "at most"),
    Row("RANK is no number", "RANK=a LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=a MASTER_PORT=1 train",
        2, "start with torchrun"),
    Row("a compile cache that cannot be written", "touch f; TORCHINDUCTOR_CACHE_DIR=f/cache train",
        0, "the default place"),
    Row("resume: beta1 is 1.5", "resume_odd beta1", 2, "below 1"),
    Row("resume: moments of another shape", "resume_odd exp_avg", 2, "no tensor of shape"),
    Row("Hugging Face: a 4-D weight", "play info ../made/hf4d", 2, "other shapes"),
    Row("deep JSON: config.json", "cp -r ../made/hf .; deep > hf/config.json; play info hf", 2,
        "cannot load"),
    Row("deep JSON: tokenizer_spec.json", "cp -r ../made/hf .; deep > hf/tokenizer_spec.json; "
        "play info hf", 2, "nested too deeply"),
    Row("deep JSON: settings.json", "log a; deep > a/settings.json; plot a", 0, "wrote"),
    Row("deep JSON: HellaSwag items", "deep > b.jsonl; score b.jsonl", 2, "not a HellaSwag item"),
    Row("deep JSON: meta.json", "cp -r ../made/shards b; deep > b/meta.json; train --data_root=b",
        2, "meta.json is damaged"),
    Row("deep JSON: documents", "deep > b.jsonl; fineweb --files=b.jsonl", 2, "a JSON array"),
    Row("deep JSON: tokenizer.json", "deep > t.json; documents --tokenizer=t.json", 2,
        "not a usable tokenizer.json"),
    Row("plot: a list as settings", "log a; echo '[1]' > a/settings.json; plot a", 0, "wrote"),
    Row("plot: a loss of 1e999", "log a; echo '2 train 1e999' >> a/log.txt; plot a", 0, "wrote"),
    Row("plot: a folder a$b_{$c", "log 'a$b_{$c'; plot 'a$b_{$c'", 0, "wrote"),
    Row("plot: without matplotlib", "log a; without matplotlib; PYTHONPATH=. plot a", 2,
        "pip install matplotlib"),
    Row("--num_samples=1000000000", "play sample ../made/gpt2.pt a --num_samples=1000000000", 2,
        "between 1 and 1000"),
    Row("sample: stdin is closed", "play sample ../made/gpt2.pt - --max_new_tokens=3 <&-", 0, ""),
    Row("chat: stdin is closed", "play chat ../made/gpt2.pt <&-", 0, ""),
    Row("info > /dev/full", "play info ../made/gpt2.pt > /dev/full", 1, "No space left"),
    Row("python -OO train_gpt2.py", 'PYTHONOPTIMIZE=2 train', 0, "saved"),
    Row("python -OO play.py --help", 'PYTHONOPTIMIZE=2 play --help', 0, "sample"),
    Row("HellaSwag in Latin-1", r"printf 'caf\xe9' > b; score b", 2, "not a HellaSwag item"),
    Row("HellaSwag as .gz", "gzip -c ../made/items.jsonl > b.gz; score b.gz", 2, "gunzip"),
    Row("HellaSwag: Ctrl-C", "signal INT takes hellaswag.py "
        "--model=../made/gpt2.pt --data=../made/many.jsonl", 130, ""),
    Row("HellaSwag | true", "score ../made/items.jsonl | true", 0, ""),
    Row("fineweb: a name in Latin-1", r"cp ../made/documents.jsonl $'caf\xe9.jsonl'; "
        "fineweb --files='*.jsonl'", 0, "next:"),
    Row("fineweb: bpe:99999999999999999999", "documents --tokenizer=bpe:99999999999999999999", 2,
        "at most bpe:"),
    Row("fineweb: --shard_size=10**15, corrected", "documents --shard_size=1000000000000000; "
        "documents", 0, "next:"),
    Row("fineweb: a regex that explodes", "fineweb --files=../made/aaa.jsonl "
        "--tokenizer=../made/explodes.json", 2, "error: "),
    Row("without tiktoken", "without tiktoken; PYTHONPATH=. gpt2", 2, "pip install tiktoken"),
    Row("without assets/", "here; gpt2", 2, "assets/gpt2.tiktoken is missing"),
    # 7 words that help
    Row("a vocabulary too large for memory", "train --vocab_size=100000000000", 2,
        "out of memory in creating the model"),
    Row("a context too large for memory", "train --block_size=100000000000", 2, "--block_size"),
    Row("input.txt from another directory", 'train --data_root=input.txt', 2, "try --data_root=/"),
    Row("an empty text", "touch b; train --data_root=b", 2, "is empty"),
    Row("a .jsonl in UTF-16", "iconv -t UTF-16 ../made/documents.jsonl > b.jsonl; "
        "fineweb --files=b.jsonl", 2, "iconv"),
    Row("a file called a[1].jsonl", "cp ../made/documents.jsonl 'a[1].jsonl'; "
        "fineweb --files='a[1].jsonl'", 0, "next:"),
    Row("plot: a/log and b/log", "log a/log; log b/log; plot a/log b/log; grep -c 'b/log, train' "
        "plot.svg", 0, "1"),
    Row("HellaSwag: endings that are a text", "score ../made/string.jsonl", 2, "not a HellaSwag"),
]


def run_bash(line, folder, seconds=120):
    """Run a line in a folder -> its exit code (None: it did not end), what it printed"""
    env = {**os.environ, "PYTHON": sys.executable, "ROOT": ROOT, "OMP_NUM_THREADS": "1"}
    shell = subprocess.Popen(["bash", "-c", COMMANDS + line], cwd=folder, env=env, text=True,
                             errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)
    try:
        printed, _ = shell.communicate(timeout=seconds)
        return shell.returncode, printed
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        return None, shell.communicate()[0]


def make_things(folder):
    """What rows need -> folder/made: texts, two runs and their checkpoints, odd checkpoints, ..."""
    made = os.path.join(folder, "made")
    work = os.path.join(folder, "work")
    os.makedirs(made)
    os.makedirs(work)
    with open(os.path.join(ROOT, "input.txt"), encoding="utf-8") as f:
        text = f.read(60_000)
    item = {"ctx": "A man sits. He", "label": 0, "endings": ["gets up", "sits", "eats", "runs"]}
    long = {**item, "endings": ["stands up and walks away. " * 9, "sits", "eats", "runs"]}
    files = {"text.txt": text[:20_000],
             "documents.jsonl": "".join(json.dumps({"text": part}) + "\n"
                                        for part in text.split("\n\n")),
             "aaa.jsonl": json.dumps({"text": "a" * 200 + "!"}) + "\n",
             "items.jsonl": (json.dumps(item) + "\n") * 8,
             "long.jsonl": json.dumps(long) + "\n",
             "many.jsonl": (json.dumps(item) + "\n") * 200_000,  # minutes of work
             "string.jsonl": json.dumps({**item, "endings": "abcd"}) + "\n"}
    for name, contents in files.items():
        with open(os.path.join(made, name), "w", encoding="utf-8") as f:
            f.write(contents)
    os.mkdir(os.path.join(made, "long"))
    with open(os.path.join(made, "long", "log.txt"), "w") as f:
        f.writelines(f"{step} {stream} 4.5\n" for step in range(500_000)
                     for stream in ("train", "lr", "norm", "dt"))
    code, printed = run_bash("train --log_dir=../made/log && gpt2 --log_dir=../made/log2 && "
                             "mv ../made/log2/model_00004.pt ../made/gpt2.pt && "
                             "play export ../made/gpt2.pt ../made/hf && "
                             "documents --out=../made/shards --shard_size=3000", work)
    assert code == 0, printed
    make_odd_things(made)


def change(path, new_path, keys, value):
    """A checkpoint with another value, saved[keys[0]][keys[1]]... -> new_path"""
    saved = copy.deepcopy(torch.load(path, weights_only=True))
    place = saved
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    torch.save(saved, new_path)


def make_odd_things(made):
    """Checkpoints, a directory and a tokenizer.json that somebody has made by hand -> made"""
    from safetensors.torch import load_file, save_file
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    wpe = "transformer.wpe.weight"
    odd = {"beta1": (["train_config", "beta1"], 1.5),
           "exp_avg": (["optimizer", "state", wpe, "exp_avg"], torch.zeros(3)),
           "int8": (["model", wpe], torch.zeros(32, 8, dtype=torch.int8)),
           "stranger": (["train_config", "log_dir"], "keys")}
    for name, (keys, value) in odd.items():
        change(f"{made}/log/model_00004.pt", f"{made}/{name}.pt", keys, value)

    weights = load_file(f"{made}/hf/model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    weights[name] = weights[name][None, None].contiguous()
    shutil.copytree(f"{made}/hf", f"{made}/hf4d")
    save_file(weights, f"{made}/hf4d/model.safetensors", {"format": "pt"})

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated"),
        pre_tokenizers.Split(Regex("[^a]"), "isolated")])
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(f"{made}/explodes.json")


def try_row(row, folder):
    """
    Do what a row says, in an empty directory of folder -> was it as it should be, and the cells of
    the table: exit code, last line, seconds.
    """
    work = os.path.join(folder, "work")
    shutil.rmtree(work)
    os.mkdir(work)
    t0 = time.time()
    code, printed = run_bash(row.line, work)
    took = time.time() - t0
    no_traceback = "Traceback" not in printed and "a fault of this program" not in printed
    is_right = code == row.code and row.says in printed and no_traceback
    last = (printed.strip().splitlines() or [""])[-1]
    exit_code = "it did not end" if code is None else code
    return is_right, f"{exit_code} | {last[:150]} | {took:.0f}"


def clumsy(only=""):
    """Do all rows, or those that hold a word, and print a table -> was all as it should be?"""
    rows = [row for row in ROWS if only in row.did]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        make_things(folder)
        print("| what was done | exit code | last line | seconds | as it should be? |\n"
              "|---|---|---|---|---|", flush=True)
        for row in rows:
            is_right, cells = try_row(row, folder)
            wrong += not is_right
            print(f"| {row.did} | {cells} | {'yes' if is_right else 'NO'} |", flush=True)
    print(f"\n{len(rows)} rows, {wrong} not as they should be")
    return wrong == 0


# -------------------------------------------------------------------------------------------------
# 5 the command line

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("kills", "clumsy"), default="kills")
    parser.add_argument("--only", default="", help="clumsy: the rows that hold this word")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000,
                        help="enough that all the kills come before the end")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.part == "clumsy":
        sys.exit(0 if clumsy(args.only) else 1)
    for processes in args.processes:
        for dtype in args.dtype:
            folder = tempfile.mkdtemp()  # it stays, to look at, if an assertion fails
            t0 = time.time()
            done, inside = torture(folder, args.kills, args.steps, processes, dtype, args.seed)
            print(f"{processes} process(es), {dtype}: {done} kills, {inside} of them inside a "
                  f"write: the same bits ({time.time() - t0:.0f}s)", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
