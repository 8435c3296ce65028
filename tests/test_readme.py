"""Facts about README.md: what it tells one to type works, what it prints is printed, what it points to exists."""
import csv
import glob
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from small_runs import ROOT

import fineweb
import play
import train_gpt2
from support.settings import check_settings, parse_flags

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
    README = f.read()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)  # (text or "", contents)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)  # all the rest
INLINE = re.findall(r"`((?:python|torchrun) [^`]+)`", " ".join(PROSE.split()))

# a run on the CPU that takes no time, whatever the command asks for
TINY = ("--device=cpu --dtype=float32 --no-compile --n_layer=1 --n_head=1 --n_embd=4 --block_size=32 --T=32 --B=2 "
        "--total_batch_size=64 --max_steps=1 --warmup_steps=0 --eval_every=0 --val_tokens=64 --no-hellaswag")
START = "--device=cpu --dtype=float32 --val_tokens=64"  # the same where a checkpoint says how large the model is

# How each command is run here: flags that make it short, or another line where that is not enough.
SHORT = {
    "python train_gpt2.py --preset=laptop": "--device=cpu --max_steps=2 --eval_every=0 --val_tokens=2000",
    "python train_gpt2.py --preset=laptop --device=cpu": "--max_steps=2 --eval_every=0 --val_tokens=2000",
    "python train_gpt2.py --preset=debug": TINY,
    "python train_gpt2.py": TINY,
    "python train_gpt2.py --B=32": TINY,
    "python train_gpt2.py --B=16": TINY,
    "python train_gpt2.py --B=4": TINY,
    "python train_gpt2.py --preset=gpt2-xl --shard --offload --activation_checkpointing --B=2": TINY,
    "python fineweb.py --files='data/*.jsonl' --out=shards": "",
    "python fineweb.py --files=book.txt --tokenizer=bpe:8000 --out=shards": "--tokenizer=bpe:300 --out=bpe",
    "python fineweb.py --check=shards": "",
    "python train_gpt2.py --data_root=shards": TINY,
    "python fineweb.py --files=chinese_classic.txt --tokenizer=char --out=zh_char": "",
    "python train_gpt2.py --preset=laptop --max_steps=1200 --data_root=zh_char": TINY,
    "python train_gpt2.py --resume=auto": f"{START} --max_steps=2",
    "python train_gpt2.py --resume=log/model_10000.pt --log_dir=log2": f"{START} --max_steps=2",
    "python train_gpt2.py --init_from=log/model_19073.pt --max_steps=0": START,
    "python hellaswag.py --model=log/model_19073.pt --data=items.jsonl --limit=1000": "--device=cpu",
    'python play.py sample MODEL "To be, or" --num_samples=4': "--max_new_tokens=4 --device=cpu",
    "python play.py chat MODEL": "--max_new_tokens=4 --device=cpu",
    "python play.py plot log log2 --out=log.png --reference": "",
    "python play.py export MODEL DIR": "",
    "python play.py info MODEL": "",
    "python train_gpt2.py --data_root=input.txt --n_layer=2 --n_head=2 --n_embd=32 --T=256 --B=4 "
    "--total_batch_size=2048 --max_steps=100 --warmup_steps=10 --max_lr=3e-3 --min_lr=3e-4 --eval_every=0 "
    "--no-hellaswag --log_dir=standin": f"{TINY} --log_dir=other",
    "python play.py export standin/model_00100.pt standin-gpt2": "",
    "python train_gpt2.py --init_from=standin-gpt2 --data_root=input.txt --T=256 --B=4 --total_batch_size=1024 "
    "--max_steps=40 --warmup_steps=4 --max_lr=3e-4 --min_lr=3e-5 --eval_every=20 --no-hellaswag --log_dir=tuned":
        f"{START} --T=32 --total_batch_size=128 --max_steps=1 --warmup_steps=0 --log_dir=other",
    'python play.py sample tuned/model_00200.pt "To be, or"': "--max_new_tokens=4 --device=cpu",
    "python train_gpt2.py --preset=gpt2-xl --shard --activation_checkpointing --estimate": "",
    "python play.py estimate": "",
    # in a sentence
    'python play.py sample log/model_03921.pt "To be, or"': "--max_new_tokens=4 --device=cpu",
    "python play.py plot log --reference": "",
}
# What is not run here, and why: its flags are checked all the same, so that none is renamed unnoticed.
PARSED = {
    "python fineweb.py": "needs the network",
    "python fineweb.py --max_shards=3": "needs the network",
    "HF_ENDPOINT=https://hf-mirror.com python fineweb.py": "needs the network",
    "python fineweb.py --name=sample-350BT --part=3/8": "needs the network",
    "python train_gpt2.py --init_from=gpt2 --max_steps=0": "needs the network",
    "python train_gpt2.py --init_from=gpt2 --data_root=mytext.txt --T=256 --B=4 --total_batch_size=8192 "
    "--max_steps=200 --warmup_steps=20 --max_lr=3e-5 --min_lr=3e-6 --eval_every=50 --no-hellaswag --log_dir=tuned":
        "needs the network; the stand-in's line is run",
    "python hellaswag.py --model=gpt2": "needs the network",
    "torchrun --standalone --nproc_per_node=8 hellaswag.py --model=gpt2-xl": "needs the network and eight GPUs",
    "torchrun --standalone --nproc_per_node=8 --max-restarts=3 train_gpt2.py --resume=auto": "needs eight GPUs",
    "torchrun --standalone --nproc_per_node=8 --max-restarts=3 --shutdown-timeout=120 train_gpt2.py --resume=auto":
        "needs eight GPUs",
    "torchrun --nnodes=2 --nproc_per_node=8 --max-restarts=3 --shutdown-timeout=120 --rdzv-id=gpt2 "
    "--rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --rdzv-conf=keep_alive_max_attempt=12 train_gpt2.py --resume=auto "
    "--log_dir=/shared/log": "needs two machines",
    "torchrun --standalone --nproc_per_node=4 train_gpt2.py --B=16": "needs four GPUs",
    "torchrun --standalone --nproc_per_node=4 train_gpt2.py --preset=gpt2-xl --shard --activation_checkpointing --B=2":
        "needs four GPUs",
    "torchrun --standalone --nproc_per_node=2 train_gpt2.py --preset=laptop --device=cpu --dtype=float32":
        "run by test_two_processes_as_the_readme_says, which is slow",
    "pip install -r requirements.txt": "run by .ci/run",
    "git log --reverse": "is no command of ours",
    "python -m pytest": "is what you are running",
    "git switch -c rope": "is no command of ours",
    "python -m pytest exercises -k rope": "fails until the exercise is done",
    "python -m pytest exercises -k rope -m slow": "fails until the exercise is done",
    "python tools/chapters.py": "run by test_chapters.py",
    "python tools/chapters.py 10": "takes minutes; test_chapters.py runs other chapters",
    "python tools/bench.py": "takes a quarter of an hour",
    "python tools/bench.py ddp": "measures, which no test does",
    "python tools/faults.py": "test_faults.py has its short form",
    "python train_gpt2.py --help": "prints its flags and ends",
}


def commands():
    """All that README.md says one can type, in order: lines of blocks and in sentences, without comments -> list"""
    lines = [line for kind, text in BLOCKS if kind == "" for line in text.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in [*lines, *INLINE]]
    return [" ".join(line.split()) for line in lines if line.strip()]


def parse(words):
    """Give a command's flags to the program's own parser, which refuses one that it does not know."""
    program, *argv = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if program == "torchrun":
        from torch.distributed.run import parse_args
        args = parse_args(argv)
        return parse(["python", args.training_script, *args.training_script_args])
    if program != "python" or argv[0] == "-m" or argv[1:] == ["--help"]:
        return
    script, *argv = argv
    assert os.path.isfile(os.path.join(ROOT, script)), f"there is no {script}"
    if script == "train_gpt2.py":
        configs = parse_flags(argv, "", train_gpt2.PRESETS, train_gpt2.GPTConfig, train_gpt2.TrainConfig)[:2]
        check_settings(*configs)
    elif script == "fineweb.py":
        parse_flags(argv, "", {}, fineweb.ShardConfig)
    elif script == "play.py":
        play.parse_args(argv)
    elif script == "hellaswag.py":
        play.parse_args(["hellaswag", *argv])


def test_every_command_is_accounted_for():
    """A line that README.md gains is run here, or it is said why not; what it loses goes from here, too."""
    here, there = {*SHORT, *PARSED}, set(commands())
    assert there - here == set(), "add these to SHORT, or to PARSED"
    assert here - there == set(), "README.md no longer has these"


def torchruns_flags():
    from torch.distributed.run import get_args_parser
    return set(get_args_parser()._option_string_actions)


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_every_flag_exists(command):
    if " --shutdown-timeout=" in command and "--shutdown-timeout" not in torchruns_flags():
        pytest.skip("README.md says to leave --shutdown-timeout out with a torchrun as old as this one")
    parse(shlex.split(command))


def test_flags_in_sentences_exist():
    """`--B`, `--val_tokens=100000` and the like: some program has that flag."""
    known = {f"--{name}" for cls in (train_gpt2.GPTConfig, train_gpt2.TrainConfig, fineweb.ShardConfig)
             for name in cls.__dataclass_fields__}
    known |= {"--no-" + flag[2:] for flag in known}
    with open(os.path.join(ROOT, "play.py"), encoding="utf-8") as f, \
         open(os.path.join(ROOT, "tools", "bench.py"), encoding="utf-8") as g:
        known |= set(re.findall(r"--[a-z_]+", f.read() + g.read()))
    known |= {*torchruns_flags(), "--shutdown-timeout"}  # which older ones lack, as README.md says
    assert set(re.findall(r"(?<=`)--[\w-]+", PROSE)) - known == {"--help"} - known


# --- run for real ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory like the one that a reader has who has done all that README.md says, with very small models."""
    folder = tmp_path_factory.mktemp("readme")
    os.symlink(os.path.join(ROOT, "input.txt"), folder / "input.txt")
    with open(folder / "input.txt", encoding="utf-8") as f:
        text = f.read(30_000)
    (folder / "book.txt").write_text(text)
    (folder / "chinese_classic.txt").write_text("话说天下大势，分久必合，合久必分。" * 200, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in text.split("\n\n")))
    item = {"ctx": "To be, or", "label": 1, "endings": ["six", "not to be", "seven", "eight"]}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    before = os.getcwd()
    os.chdir(folder)
    try:
        for flags in ("--files=book.txt", "--files=data/*.jsonl --out=shards",
                      "--files=chinese_classic.txt --tokenizer=char --out=zh_char"):
            fineweb.main(flags.split())
        for log_dir, path in (("log", "log/model_10000.pt"), ("log2", "tuned/model_00200.pt")):
            train_gpt2.run([*TINY.split(), f"--log_dir={log_dir}"])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy(f"{log_dir}/model_00001.pt", path)
        os.mkdir("standin")
        for path in ("log/model_03921.pt", "log/model_19073.pt", "standin/model_00100.pt"):
            shutil.copy("log/model_00001.pt", path)
        play.main(["export", "log/model_00001.pt", "standin-gpt2"])
    finally:
        os.chdir(before)
    return folder


def run_hellaswag(argv):
    play.main(["hellaswag", *argv])


@pytest.mark.parametrize("command", SHORT)
def test_every_command_runs(command, workplace, tmp_path, monkeypatch, capsys):
    """In its short form, each in a copy of the same directory."""
    folder = tmp_path / "here"
    # checkpoints are replaced, never changed: a second name for each will do
    shutil.copytree(workplace, folder, symlinks=True,
                    copy_function=lambda a, b: (os.link if a.endswith(".pt") else shutil.copy2)(a, b))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("To be, or\n"))
    names = {"MODEL": "log/model_19073.pt", "DIR": "exported"}
    _, script, *argv = [names.get(word, word) for word in shlex.split(f"{command} {SHORT[command]}")]
    if script == "play.py" and argv[0] == "export":
        shutil.rmtree(argv[2], ignore_errors=True)  # it wants a new one
    module = {"train_gpt2.py": train_gpt2.run, "fineweb.py": fineweb.main, "play.py": play.main,
              "hellaswag.py": run_hellaswag}[script]
    module(argv)
    assert capsys.readouterr().out


# --- what one will see ----------------------------------------------------------------------------

def same_output(expected, printed, tolerance):
    """Are two texts alike? Words must be the same, numbers agree to `tolerance`; times and rates are not compared."""
    shapes = []
    for text in (expected, printed):
        text = re.sub(r"(dt: |tok/sec: )[\d.]+", r"\1", re.sub(r"[\d.]+ min left", "min left", text))
        shapes.append(([float(n) for n in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", text)],
                       " ".join(re.sub(r"-?\d+\.?\d*(?:e[-+]\d+)?", " 0 ", text).split())))
    (a, words_a), (b, words_b) = shapes
    assert words_a == words_b
    assert all(abs(x - y) <= tolerance * max(1, abs(x)) for x, y in zip(a, b, strict=True)), (expected, printed)


OUTPUTS = [text for kind, text in BLOCKS if kind == "text"]


def run_as_printed(cwd, until=None):
    """python train_gpt2.py --preset=laptop, in a process of its own -> its lines, up to one that holds `until`"""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), "--preset=laptop", "--device=cpu",
               f"--data_root={ROOT}/input.txt"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as run:
        for line in run.stdout:
            if not line.startswith("validation takes"):
                lines.append(line.rstrip("\n"))
            if until is not None and until in line:
                run.kill()
                break
    assert until is not None or run.returncode == 0
    return lines


def test_all_outputs_are_compared():
    """There are two blocks of expected output: the first and the last lines of the laptop's run."""
    assert len(OUTPUTS) == 2 and "step     0" in OUTPUTS[0] and "step  3921" in OUTPUTS[1]


def test_the_first_lines_of_the_laptops_run(tmp_path):
    """Word for word, the numbers to four digits: they depend on the seed, hardly on the machine."""
    lines = run_as_printed(tmp_path, until="step     1 | loss")
    same_output(OUTPUTS[0], "\n".join(lines), 2e-4)


@pytest.mark.slow
def test_the_last_lines_of_the_laptops_run(tmp_path):
    """After 3,921 steps rounding has grown: another machine may end 0.05 elsewhere, and a batch 0.15."""
    lines = run_as_printed(tmp_path)
    i = next(i for i, line in enumerate(lines) if line.startswith("step  3920"))
    expected = OUTPUTS[1].splitlines()
    same_output("\n".join(expected), "\n".join(lines[i : i + len(expected)]), 0.15)
    printed, here = (float(re.search(r"validation loss: ([\d.]+)", text)[1]) for text in (OUTPUTS[1], lines[i + 1]))
    assert abs(printed - here) < 0.05


@pytest.mark.slow
def test_two_processes_as_the_readme_says(tmp_path):
    """The very line, with two steps, gives the first losses that README.md prints."""
    [command] = [c for c in commands() if "--nproc_per_node=2 " in c]
    words = shlex.split(command)[1:]
    words[words.index("train_gpt2.py")] = os.path.join(ROOT, "train_gpt2.py")
    result = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words, "--max_steps=2", "--save_every=0",
                             f"--data_root={ROOT}/input.txt"], capture_output=True, text=True, cwd=tmp_path,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    for line in [line for line in OUTPUTS[0].splitlines() if "| loss: " in line]:
        start = line[: line.index(" | lr")][:-2]  # all but the last two digits
        assert start in result.stdout


# --- what it points to ----------------------------------------------------------------------------

def test_links_lead_somewhere():
    """Files and pictures exist, and so do the headings that #links name."""
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in set(re.findall(r"\]\(([^)\s]+)\)", README)):  # the translation follows its original
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("http"):
            assert os.path.exists(os.path.join(ROOT, link)), link


def test_the_tests_that_are_named_exist():
    defined = set()
    for path in glob.glob(os.path.join(ROOT, "tests", "**", "*.py"), recursive=True):
        defined |= {os.path.basename(path).removesuffix(".py"), os.path.relpath(path, ROOT).replace(os.sep, "/")}
        with open(path, encoding="utf-8") as f:
            defined |= set(re.findall(r"^def (test_\w+)", f.read(), re.MULTILINE))
    assert set(re.findall(r"\btest_\w+|\btests/[\w/]+\.py", README)) - defined == set()


def test_the_reference_table_is_that_of_the_curve():
    """The table of "Is my curve normal?" has the figures of assets/reference_curve.csv, and the bands of its rule."""
    with open(os.path.join(ROOT, "assets", "reference_curve.csv"), encoding="utf-8") as f:
        curve = {row["step"]: row for row in csv.DictReader(line for line in f if not line.startswith("#"))}
    rows = re.findall(r"^\| (\d+)" + r" \| ([\d.]+)" * 5 + r" \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    for step, val_a, val_b, band, hella_a, hella_b in rows:
        row = curve[step]
        assert abs(float(row["val_a"]) - float(val_a)) < 6e-4 and abs(float(row["val_b"]) - float(val_b)) < 6e-4, step
        assert float(row["hella_a"]) == float(hella_a) and float(row["hella_b"]) == float(hella_b), step
        assert float(band) == (0.05 if int(step) < 1000 else 0.03 if int(step) < 3000 else 0.02), step
