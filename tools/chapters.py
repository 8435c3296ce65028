"""
The lecture in the history: the first 30 commits are chapters, each of which runs. This measures one of them again,
beside the chapter before it, on a CPU.

    python tools/chapters.py                # the chapters
    python tools/chapters.py 10             # chapters 9 and 10: their programs, 14 steps each, half a minute
    python tools/chapters.py 10 --steps=50  # as far as their commit messages quote them

They are unpacked into a temporary folder; your files are not touched. Compare the two lines: single times depend on the
machine and on what else it does.
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

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from support.console import UserError, run_program

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = "train_gpt2.py"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", PROGRAM]
# the chapters before the eleventh do not set a seed; two runs can only be compared with the same one
SEEDED = ["-c", f"import runpy, torch; torch.manual_seed(1337); runpy.run_path('{PROGRAM}', run_name='__main__')"]
ATTENTION = ["-c", """
import statistics, time, torch, train_gpt2
attention, x, times = train_gpt2.CausalSelfAttention(train_gpt2.GPTConfig()), torch.randn(4, 1024, 768), []
for _ in range(6):
    t0 = time.time()
    attention(x).sum().backward()
    times.append(time.time() - t0)
print(f"one layer, B=4, T=1024, forward and backward: {1000 * statistics.median(times[1:]):.0f} ms")"""]

# chapter: what shows its effect (steps of its program; what a program prints; the chapter's own tests, chosen with -k)
# and what to look at. Where nothing else is said, it is steps of its program
MEASURES = {
    1: ("prints", SEEDED, "124M and a head that is not tied to the embedding yet"),
    2: ("prints", SEEDED, "nothing more to see without OpenAI's weights: python train_gpt2.py gpt2 would fetch them"),
    3: ("tests", "hugging_face or future", "the logits are those of transformers"),
    4: ("prints", SEEDED, "a random model writes noise"),
    5: ("prints", SEEDED, "none on a CPU"),
    6: ("prints", SEEDED, "y is x moved on by one"),
    7: ("prints", SEEDED, "a bit worse than ln(50257), which knowing nothing costs"),
    12: ("steps", SEEDED, "a CPU has no TF32: from here on there is a clock"),
    13: ("steps", SEEDED, "the time on a CPU depends on what it multiplies natively; the losses agree in three digits"),
    14: ("steps", SEEDED, "none on a CPU, where nothing is compiled"),
    15: ("prints", ATTENTION, "the time of attention, at the length where it matters"),
    16: ("steps", SEEDED, "on a CPU nothing that stands out of the noise"),
    20: ("tests", "add_up", "four micro batches, each loss divided by four, have the gradient of the whole batch"),
    21: ("steps", TWO, "two processes; the chapter before in one. The losses agree in three digits"),
    22: ("tests", "stream or split or drift or mapped", "the order of the tokens depends on nothing but the tokens"),
    24: ("tests", "hellaswag", "an untrained model is right in a quarter of the items; here: the parts are right"),
    25: ("nothing", None, "log/log.txt and log/model_*.pt, after a run of its program by hand"),
    26: ("tests", "two_processes or learning_rate", "every knob is a flag; two processes take the steps of one"),
    27: ("tests", "compiled or compiling or dtype", "one compiled graph, whatever the evals do; the gain is a GPU's"),
    28: ("tests", "resum or goes_on", "8 + 2 steps are 10 steps, bit for bit"),
    29: ("tests", "dropout or weights or original", "resuming stays exact with dropout; what a run can start from"),
    30: ("tests", "wrong_flags", "mistakes that end in one line"),
}


def read_chapters():
    """-> [(commit, subject, rest of the message)] of the 30 chapters, or one line and exit code 2 without a history."""
    try:
        log = subprocess.run(["git", "-C", ROOT, "log", "--reverse", "--first-parent", "--format=%h%x1f%s%x1f%b%x1e"],
                             capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        log = ""
    chapters = [tuple(part.strip() for part in commit.split("\x1f")) for commit in log.split("\x1e")[:-1]][:30]
    if not chapters or not chapters[0][1].startswith("The nn.Module"):
        raise UserError("the chapters are commits, and they are not here: git clone the repository, without --depth")
    return chapters


def unpack(commit, folder):
    """The files of a commit -> folder. (A git worktree would leave a trace in the repository if we were killed.)"""
    archive = subprocess.run(["git", "-C", ROOT, "archive", "--format=tar", commit], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def run_steps(command, folder, steps):
    """Run a chapter's program until it has done so many steps -> a line: parameters, losses, median time of a step."""
    losses, times, seen = [], [], ""
    with subprocess.Popen([sys.executable, "-u", *command], cwd=folder, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}) as program:
        for line in program.stdout:
            seen += line
            losses += re.findall(r"\| loss: ([\d.]+)", line)
            times += map(float, re.findall(r"dt: ([\d.]+)ms", line))
            if len(losses) == steps:
                program.terminate()
                break
    if not losses:
        return "no steps yet; it prints: " + (seen.strip().splitlines() or ["nothing"])[-1]
    parts = re.findall(r"[\d,]+ parameters", seen) + [f"loss {losses[0]} at step 0, {losses[-1]} at {len(losses) - 1}"]
    parts += re.findall(r"validation loss: [\d.]+", seen)[:1]
    if len(times) > 1:  # the first step is slower than the others
        parts.append(f"{statistics.median(times[1:]):.0f} ms a step")
    return "; ".join(parts)


def measure(number, commit, kind, what, steps):
    """One chapter, in a folder of its own: print what it does."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(commit, folder)
        if kind == "steps":
            said = run_steps(what, folder, steps)
        else:
            command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", what] if kind == "tests" else what
            run = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True,
                                 env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
            lines = (run.stdout.strip() or run.stderr.strip() or "nothing").splitlines()
            said = "\n             ".join(lines[-1:] if kind == "tests" else lines)
    print(f"chapter {number:2d} | {said}", flush=True)


def refuse_flags(message):
    """What argparse calls when it does not understand a command line."""
    raise UserError(f"{message} (--help says more)")


def main(argv):
    parser = argparse.ArgumentParser(usage="python %(prog)s [chapter] [--steps=14]", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse_flags
    parser.add_argument("chapter", nargs="?", type=int, help="its number; without one, the chapters are listed")
    parser.add_argument("--steps", type=int, default=14, help="of its program, at most [14]")
    args, chapters = parser.parse_args(argv), read_chapters()
    if args.chapter is None:
        print("\n".join(f"{i:2d}  {commit}  {subject}" for i, (commit, subject, _) in enumerate(chapters, 1)))
        return
    if not 1 <= args.chapter <= len(chapters) or args.steps < 2:
        raise UserError(f"chapters are 1 to {len(chapters)}, and steps at least 2: python tools/chapters.py lists them")
    n, (commit, subject, message) = args.chapter, chapters[args.chapter - 1]
    kind, what, remark = MEASURES.get(n, ("steps", SEEDED, "the loss, and the time of a step where there is a clock"))
    print(f"{n}. {subject}  ({commit})\n\n{message}\n\n"
          f"{'Nothing to measure' if kind == 'nothing' else 'Measured now'}; look at: {remark}", flush=True)
    # a chapter's own tests are new with it: there is nothing to compare
    for i in [n] if n == 1 or kind == "tests" else [] if kind == "nothing" else [n - 1, n]:
        measure(i, chapters[i - 1][0], kind, SEEDED if what is TWO and i < n else what, args.steps)


if __name__ == "__main__":
    run_program(main)
