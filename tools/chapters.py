"""
The lecture in the history: the first 30 commits are chapters, and each of them runs. This
program runs one of them again, beside the chapter before it, on a CPU.

    python tools/chapters.py                # the chapters
    python tools/chapters.py 10             # chapters 9 and 10: 14 steps each, half a minute
    python tools/chapters.py 10 --steps=50  # as far as their commit messages quote them

They are unpacked into a temporary folder; your files are not touched. Compare the two lines:
single times depend on the machine and on what else it does.

Contents
    1 the chapters      MEASURES, read_chapters
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

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.console import UserError, run_program

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# -------------------------------------------------------------------------------------------------
# 1 the chapters

PROGRAM = "train_gpt2.py"
# the chapters before the eleventh set no seed, and only runs with the same seed can be compared
SEEDED = ["-c", "import runpy, torch; torch.manual_seed(1337); "
                f"runpy.run_path('{PROGRAM}', run_name='__main__')"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", PROGRAM]
ATTENTION = ["-c", """
import statistics, time, torch, train_gpt2
attention = train_gpt2.CausalSelfAttention(train_gpt2.GPTConfig())
x = torch.randn(4, 1024, 768)
times = []
for _ in range(6):
    t0 = time.time()
    attention(x).sum().backward()
    times.append(time.time() - t0)
ms = 1000 * statistics.median(times[1:])
print(f"one layer, B=4, T=1024, forward and backward: {ms:.0f} ms")"""]


class Chapter(NamedTuple):
    """A commit of the history."""
    commit: str
    subject: str
    message: str  # the rest of the commit's message


class Measure(NamedTuple):
    """How a chapter shows its effect."""
    kind: str  # "steps" of its program, what a program "prints", its "tests", or "nothing"
    what: list | str | None  # python's arguments; for tests: those that pytest's -k selects
    remark: str  # what to look at


USUAL = Measure("steps", SEEDED, "the loss, and the time of a step where there is a clock")
MEASURES = {  # of the chapters that have something else to show than the usual
    1: Measure("prints", SEEDED, "124M and a head that is not tied to the embedding yet"),
    2: Measure("prints", SEEDED, "nothing more to see without OpenAI's weights: python "
                                 "train_gpt2.py gpt2 would fetch them"),
    3: Measure("tests", "hugging_face or future", "the logits are those of transformers"),
    4: Measure("prints", SEEDED, "a random model writes noise"),
    5: Measure("prints", SEEDED, "no effect on a CPU"),
    6: Measure("prints", SEEDED, "y is x moved on by one"),
    7: Measure("prints", SEEDED, "a bit worse than ln(50257), which knowing nothing costs"),
    12: Measure("steps", SEEDED, "a CPU has no TF32: from here on there is a clock"),
    13: Measure("steps", SEEDED, "the time on a CPU depends on what it multiplies natively; "
                                 "the losses agree in three digits"),
    14: Measure("steps", SEEDED, "no effect on a CPU, where nothing is compiled"),
    15: Measure("prints", ATTENTION, "the time of attention, at the length where it matters"),
    16: Measure("steps", SEEDED, "no effect on a CPU that stands out of the noise"),
    20: Measure("tests", "add_up", "four micro batches, each loss divided by four, have the "
                                   "gradient of the whole batch"),
    21: Measure("steps", TWO, "two processes; the chapter before in one. The losses agree in "
                              "three digits"),
    22: Measure("tests", "stream or split or drift or mapped",
                "the order of the tokens depends on nothing but the tokens"),
    24: Measure("tests", "hellaswag", "an untrained model is right in a quarter of the items; "
                                      "here: the parts are right"),
    25: Measure("nothing", None, "log/log.txt and log/model_*.pt, after a run of its program "
                                 "by hand"),
    26: Measure("tests", "two_processes or learning_rate",
                "every knob is a flag; two processes take the steps of one"),
    27: Measure("tests", "compiled or compiling or dtype",
                "one compiled graph, whatever the evals do; the gain is a GPU's"),
    28: Measure("tests", "resum or goes_on", "8 + 2 steps are 10 steps, bit for bit"),
    29: Measure("tests", "dropout or weights or original",
                "resuming stays exact with dropout; what a run can start from"),
    30: Measure("tests", "wrong_flags", "mistakes that end in one line"),
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
    # the subject of the first commit tells whether the history is ours, and whole
    if not chapters or not chapters[0].subject.startswith("The nn.Module"):
        raise UserError("the chapters are commits, and they are not here: git clone the "
                        "repository, without --depth")
    return chapters


# -------------------------------------------------------------------------------------------------
# 2 running one

def on_cpu():
    """The environment of a program that must not see a GPU (dict)."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def unpack(commit, folder):
    """Write the files of a commit into a folder."""
    # a git worktree would leave a trace in the repository if we were killed
    archive = subprocess.run(["git", "-C", ROOT, "archive", "--format=tar", commit],
                             capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def describe(printed):
    """What a training program printed -> a line: parameters, losses, median time of a step."""
    losses = re.findall(r"\| loss: ([\d.]+)", printed)
    if not losses:
        lines = printed.strip().splitlines()
        last = lines[-1] if lines else "nothing"
        return f"no steps yet; it prints: {last}"
    parts = re.findall(r"[\d,]+ parameters", printed)
    parts.append(f"loss {losses[0]} at step 0, {losses[-1]} at {len(losses) - 1}")
    parts += re.findall(r"validation loss: [\d.]+", printed)[:1]
    times = [float(ms) for ms in re.findall(r"dt: ([\d.]+)ms", printed)]
    if len(times) > 1:
        ms = statistics.median(times[1:])  # the first step is slower than the others
        parts.append(f"{ms:.0f} ms a step")
    return "; ".join(parts)


def run_steps(command, folder, steps):
    """Run a training program (python's arguments) for so many steps -> what describe says."""
    printed = ""
    steps_done = 0
    with subprocess.Popen([sys.executable, "-u", *command], cwd=folder, env=on_cpu(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        for line in program.stdout:
            printed += line
            if "| loss: " in line:
                steps_done += 1
            if steps_done == steps:
                program.terminate()
                break
    return describe(printed)


def run_to_end(command, folder):
    """Run a program (python's arguments) -> the lines that it prints, or those of its error."""
    run = subprocess.run([sys.executable, *command], cwd=folder, env=on_cpu(),
                         capture_output=True, text=True)
    for printed in (run.stdout, run.stderr):
        if printed.strip():
            return printed.strip().splitlines()
    return ["nothing"]


def measure(number, commit, kind, what, steps):
    """Run one chapter in a folder of its own, and print what it does. kind, what: of Measure."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(commit, folder)
        if kind == "steps":
            said = run_steps(what, folder, steps)
        elif kind == "tests":
            pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", what]
            said = run_to_end(pytest, folder)[-1]
        else:
            said = "\n             ".join(run_to_end(what, folder))
    print(f"chapter {number:2d} | {said}", flush=True)


# -------------------------------------------------------------------------------------------------
# 3 the command line

def refuse_flags(message):
    """What argparse calls when it does not understand a command line."""
    raise UserError(f"{message} (--help says more)")


def parse_args(argv):
    """The command line (list of words) -> chapter (int or None), steps (int)."""
    parser = argparse.ArgumentParser(usage="python %(prog)s [chapter] [--steps=14]",
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse_flags
    parser.add_argument("chapter", nargs="?", type=int,
                        help="its number; without one, the chapters are listed")
    parser.add_argument("--steps", type=int, default=14, help="of its program, at most [14]")
    args = parser.parse_args(argv)
    return args.chapter, args.steps


def numbers_to_run(number, kind):
    """Which chapters show the effect of one -> list of numbers."""
    if kind == "nothing":
        return []
    # the first chapter has none before it; the tests of a chapter are new with it
    if number == 1 or kind == "tests":
        return [number]
    return [number - 1, number]


def main(argv):
    number, steps = parse_args(argv)
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
    print(f"{number}. {chapter.subject}  ({chapter.commit})\n\n{chapter.message}\n\n"
          f"{announced}; look at: {remark}", flush=True)
    for i in numbers_to_run(number, kind):
        command = what
        if what is TWO and i < number:
            command = SEEDED  # the chapter before knows one process only
        measure(i, chapters[i - 1].commit, kind, command, steps)


if __name__ == "__main__":
    run_program(main)
