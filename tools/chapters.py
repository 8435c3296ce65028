"""
The lecture in the history: the first 30 commits are chapters, and each of them runs. This program
runs a chapter again, beside the chapter before it, on a CPU.

    python tools/chapters.py                # lists the chapters
    python tools/chapters.py 10             # chapters 9 and 10: 50 steps each, some minutes
    python tools/chapters.py 10 --steps=14  # quicker, but two seeds may differ by more than that
    python tools/chapters.py 10 --seed=1338 # other random weights: does the effect hold?

Each chapter is unpacked into a temporary folder; your files are not touched. To see the effect,
compare the mean loss of the last ten steps: one step is one small batch, and all chapters read the
same batches. Times are CPU times, which other programs disturb less than they disturb a wall clock.

Contents
    1 the chapters      MEASURES, CORRECTIONS, read_chapters
    2 running one       unpack, run_steps, measure
    3 the command line  main
"""
import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from typing import NamedTuple

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.console import UserError, run_program
from tools import ROOT

# -------------------------------------------------------------------------------------------------
# 1 the chapters

PROGRAM = "train_gpt2.py"
SEED = 1337
STEPS = 50  # all that chapters 8 to 21 run; after 14, noise still hides most effects
# only runs with the same seed can be compared, and chapters 1 to 10 set none
SEEDED = ["-c", f"import runpy, torch; torch.manual_seed({SEED}); "
                f"runpy.run_path('{PROGRAM}', run_name='__main__')"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", PROGRAM]
ATTENTION = ["-c", """
import statistics, time, torch, train_gpt2
torch.set_num_threads(1)
attention = train_gpt2.CausalSelfAttention(train_gpt2.GPTConfig())
x = torch.randn(4, 1024, 768)
times = []
for _ in range(6):
    t0 = time.process_time()
    attention(x).sum().backward()
    times.append(time.process_time() - t0)
ms = 1000 * statistics.median(times[1:])
print(f"one layer, B=4, T=1024, forward and backward: {ms:.0f} ms")"""]


class Chapter(NamedTuple):
    """A commit of the history."""
    commit: str
    subject: str
    message: str  # without the subject


class Measure(NamedTuple):
    """How a chapter shows its effect."""
    kind: str  # "steps": run its training steps; "prints": run it to its end; "tests"; "nothing"
    what: list | str | None  # python's arguments; for "tests", the argument of pytest's -k
    remark: str  # what to look at


USUAL = Measure("steps", SEEDED, "the mean loss of the last ten steps, and the time of a step")
MEASURES = {  # chapters that do not show their effect in the usual way
    1: Measure("prints", SEEDED, "124M, and a head that is not tied to the embedding yet"),
    2: Measure("prints", SEEDED, "nothing more without OpenAI's weights, which python "
                                 "train_gpt2.py gpt2 would download"),
    3: Measure("tests", "hugging_face or future", "the logits are those of transformers"),
    4: Measure("prints", SEEDED, "a random model writes noise"),
    5: Measure("prints", SEEDED, "no effect on a CPU"),
    6: Measure("prints", SEEDED, "y is x shifted by one"),
    7: Measure("prints", SEEDED, "slightly above ln(50257), the loss of a uniform guess"),
    12: Measure("steps", SEEDED, "a CPU has no TF32: from here on there is a clock"),
    13: Measure("steps", SEEDED, "faster only if the CPU multiplies bfloat16 natively; "
                                 "the losses agree in three digits"),
    14: Measure("steps", SEEDED, "no effect on a CPU, where nothing is compiled"),
    15: Measure("prints", ATTENTION, "the time of attention, at the length where it matters"),
    16: Measure("steps", SEEDED, "on a CPU the effect is lost in the noise"),
    20: Measure("tests", "add_up", "four micro-batches, each loss divided by four, give the "
                                   "gradient of the whole batch"),
    21: Measure("steps", TWO, "two processes; the chapter before in one. The losses agree in "
                              "three digits"),
    22: Measure("tests", "stream or split or drift or mapped",
                "the order of the tokens depends on nothing but the tokens"),
    24: Measure("tests", "hellaswag", "the parts are right; an untrained model would be right in "
                                      "a quarter of the items"),
    25: Measure("nothing", None, "log/log.txt and log/model_*.pt, after a run of its program "
                                 "by hand"),
    26: Measure("tests", "two_processes or learning_rate",
                "every setting is a flag; two processes take the steps of one"),
    27: Measure("tests", "compiled or compiling or dtype",
                "one compiled graph, whatever the evals do; only GPUs gain"),
    28: Measure("tests", "resum or goes_on", "8 + 2 steps are 10 steps, bit for bit"),
    29: Measure("tests", "dropout or weights or original",
                "resuming stays exact with dropout; a run can start from other "
                                               "weights"),
    30: Measure("tests", "wrong_flags", "a mistake ends in one line"),
}

# Printed below the messages, which are history and stay as they are
CORRECTIONS = {
    7: "The loss above comes from another seed: 1337 gives 10.8738.",
    8: "The losses above come from another seed: 1337 gives 10.8738 and 0.0028.",
    9: "The losses above come from another seed: 1337 gives 10.8738 and 6.6651.",
    10: "The losses above come from another seed: 1337 gives 6.9469 instead of 6.6651. The next "
        "chapter does not repair that.",
    11: 'The loss in "before" comes from another seed: 1337 gives 6.9469. And a comment in the '
        'program keeps the variance of the stream "at about one": in this fresh model it ends at '
        "0.09.",
}


def read_chapters():
    """The first 30 commits -> list of Chapter. Raises UserError where there is no history."""
    # the fields of a commit are separated by the character 1f, and each commit ends in 1e
    command = ["git", "-C", ROOT, "log", "--reverse", "--first-parent",
               "--format=%h%x1f%s%x1f%b%x1e"]
    try:
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        log = ""
    commits = log.split("\x1e")[:-1]  # nothing follows the last one
    chapters = []
    for commit in commits[:30]:
        fields = [field.strip() for field in commit.split("\x1f")]
        chapters.append(Chapter(*fields))
    # another first commit: a shallow clone, or somebody else's history
    if not chapters or not chapters[0].subject.startswith("The nn.Module"):
        raise UserError("the chapters are commits, and they are not here: git clone the "
                        "repository, without --depth")
    return chapters


# -------------------------------------------------------------------------------------------------
# 2 running one

WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def unpack(commit, folder, seed=SEED):
    """Write the files of a commit into a folder. seed: replaces the one in its program"""
    # if we were killed, a git worktree would leave traces in the repository
    archive = subprocess.run(["git", "-C", ROOT, "archive", "--format=tar", commit],
                             capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        # set like this, Pythons before 3.11.4, which have no filters, ignore it
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
    if seed != SEED:
        path = os.path.join(folder, PROGRAM)
        with open(path, encoding="utf-8") as f:
            program = f.read()
        with open(path, "w", encoding="utf-8") as f:
            f.write(program.replace(f"manual_seed({SEED})", f"manual_seed({seed})"))


def cpu_seconds(pid):
    """CPU time of a process, all threads -> seconds; None if this is not Linux"""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()  # its name, in brackets, may contain spaces
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])  # user and system time
    return ticks / os.sysconf("SC_CLK_TCK")


class Run(NamedTuple):
    """What a training program did."""
    printed: str
    losses: list  # of its steps
    cpu_ms: float | None  # CPU time of a step; the first, which is slower, does not count


def describe(run):
    """Run -> a line: parameters, losses, the time of a step"""
    if not run.losses:
        lines = run.printed.strip().splitlines()
        last = lines[-1] if lines else "nothing"
        return f"no steps yet; it prints: {last}"
    parts = re.findall(r"[\d,]+ parameters", run.printed)
    parts.append(f"loss {run.losses[0]:.4f} at step 0, {run.losses[-1]:.4f} at "
                 f"{len(run.losses) - 1}")
    parts.append(f"mean of the last ten {statistics.mean(run.losses[-10:]):.3f}")
    parts += re.findall(r"validation loss: [\d.]+", run.printed)[:1]
    if run.cpu_ms is not None:
        parts.append(f"{run.cpu_ms:.0f} ms of CPU a step")
    return "; ".join(parts)


def run_steps(command, folder, bar):
    """
    Run a training program until it has done as many steps as a progress bar has -> Run. command:
    python's arguments
    """
    printed, losses, times = "", [], []
    with subprocess.Popen([sys.executable, "-u", *command], cwd=folder, env=WITHOUT_GPU, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        for line in program.stdout:
            printed += line
            loss = re.search(r"\| loss: ([\d.]+)", line)
            if loss:
                losses.append(float(loss[1]))
                times.append(cpu_seconds(program.pid))
                bar.update()
            if len(losses) == bar.total:
                program.terminate()
                break
    cpu_ms = None
    if len(times) > 1 and None not in times:
        cpu_ms = 1000 * (times[-1] - times[0]) / (len(times) - 1)
    return Run(printed, losses, cpu_ms)


def run_to_end(command, folder):
    """Run a program -> the lines of stdout, or of stderr if stdout is empty"""
    run = subprocess.run([sys.executable, *command], cwd=folder, env=WITHOUT_GPU,
                         capture_output=True, text=True)
    for printed in (run.stdout, run.stderr):
        if printed.strip():
            return printed.strip().splitlines()
    return ["nothing"]


def with_seed(command, seed):
    """python's arguments, with another seed"""
    return [word.replace(f"manual_seed({SEED})", f"manual_seed({seed})") for word in command]


def measure(number, commit, kind, what, steps, seed):
    """Run a chapter in a folder of its own, and print the result. kind, what: see Measure"""
    with tempfile.TemporaryDirectory() as folder:
        unpack(commit, folder, seed)
        if kind == "steps":
            # None: no bar if stderr is a file or a pipe
            with tqdm(total=steps, desc=f"chapter {number}", leave=False, disable=None) as bar:
                said = describe(run_steps(with_seed(what, seed), folder, bar))
        elif kind == "tests":
            pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", what]
            said = run_to_end(pytest, folder)[-1]
        else:
            said = "\n             ".join(run_to_end(what, folder))
    print(f"chapter {number:2d} | {said}", flush=True)


# -------------------------------------------------------------------------------------------------
# 3 the command line

def parse_args(argv):
    """The command line -> chapter, steps, seed, record"""
    parser = argparse.ArgumentParser(usage="python %(prog)s [chapter] [--steps=50] [--seed=1337]",
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", nargs="?", type=int,
                        help="a number; without one, the chapters are listed")
    parser.add_argument("--steps", type=int, default=STEPS,
                        help="at most [%(default)s]")
    parser.add_argument("--seed", type=int, default=SEED, help="of the weights [%(default)s]")
    return parser.parse_args(argv)


def numbers_to_run(number, kind):
    """The chapters to run to see the effect of one -> list of numbers"""
    if kind == "nothing":
        return []
    # chapter 1 has no predecessor, and a chapter's tests are new with it
    if number == 1 or kind == "tests":
        return [number]
    return [number - 1, number]


def main(argv):
    args = parse_args(argv)
    number, steps = args.chapter, args.steps
    chapters = read_chapters()
    if number is None:
        for i, chapter in enumerate(chapters, 1):
            print(f"{i:2d}  {chapter.commit}  {chapter.subject}")
        return
    if not 1 <= number <= len(chapters) or steps < 2:
        raise UserError(f"chapters are 1 to {len(chapters)}, and steps at least 2: python "
                        "tools/chapters.py lists them")

    chapter = chapters[number - 1]
    kind, what, remark = MEASURES.get(number, USUAL)
    announced = "Nothing to measure" if kind == "nothing" else "Measured now"
    print(f"{number}. {chapter.subject}  ({chapter.commit})\n\n{chapter.message}\n")
    if number in CORRECTIONS:
        print(f"Today: {CORRECTIONS[number]}\n")
    print(f"{announced}; look at: {remark}", flush=True)
    for i in numbers_to_run(number, kind):
        command = what
        if what is TWO and i < number:
            command = SEEDED  # the chapter before can only run as one process
        measure(i, chapters[i - 1].commit, kind, command, steps, args.seed)


if __name__ == "__main__":
    run_program(main)
