"""
I changed something: did it help? Trains two versions with the same seeds, in turn, and says whether
the difference is more than chance (docs/hacking.md has worked examples).

    python tools/compare.py                          # the last commit against the files as they are
    python tools/compare.py main rope --pairs=8      # two branches or commits; "." is the files
    python tools/compare.py --a="--max_lr=4e-3" --b="--max_lr=6e-3"    # one version, two settings
    python tools/compare.py main rope --metric=train --max_steps=1000 --n_layer=6
    python tools/compare.py --again=log              # repeat a run from its settings.json

All other flags, written --name=value, go to both versions; they begin with --preset=laptop. Every
log is kept in --out, and the same command continues an interrupted comparison.

When may we stop? Whoever looks after every pair and stops at p < 0.05 finds a difference where
there is none in 24% of comparisons. So there are only four looks, at a quarter, half, three
quarters and all of the pairs, and the early ones ask for more (LOOKS): 5.3% with 16 pairs, by
simulation. The usual bounds for four looks (O'Brien and Fleming 1979) are made for known variances;
with a t-test on few pairs they give 10.9%. So do not change the metric or --pairs after a look.
"""
import argparse
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import plot
from support.console import UserError, run_program
from support.files import atomic_write, read_json
from support.runlog import MOST_DIFF, describe_code, read_log
from support.settings import refuse
from tools import ROOT

LOOKS = (0.00005, 0.0042, 0.019, 0.043)  # the p below which each look decides
TRAIN_STEPS = 100  # --metric=train: the mean loss of the last 100 steps

# --- two versions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    name: str  # "a" or "b"
    commit: str  # as typed; "." means the files as they are
    folder: str  # where its files are
    flags: list  # its own, after those that both versions have
    code: dict  # commit and diff, see describe_code

    def __str__(self):
        commit = self.code.get("commit", "not in git")[:9]
        changed = " and changes" if not self.code.get("clean", True) else ""
        return " ".join([f"{self.name.upper()}: {self.commit} ({commit}{changed})", *self.flags])


def git(*args, advice, cwd=ROOT, stdin=""):
    """Run git. UserError with git's own words, and what to do, if it fails."""
    done = subprocess.run(["git", *args], cwd=cwd, capture_output=True, text=True, input=stdin)
    if done.returncode != 0:
        raise UserError(f"git {args[0]} says {done.stderr.strip().splitlines()[-1]}: {advice}")


@contextmanager
def checked_out(commit):
    """The files of a commit, in a temporary folder -> its path. "." means the files as they are."""
    if commit == ".":
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = os.path.join(parent, "files")
        git("worktree", "add", "--detach", folder, commit, cwd=ROOT,
            advice='name a commit, a branch, or "." for the files; write flags as --name=value')
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", folder, cwd=ROOT, advice="remove it by hand")


# --- their runs -----------------------------------------------------------------------------------

def start(program, flags, log_dir):
    """Run the train_gpt2.py of a version. What it prints goes into log_dir.txt"""
    command = [sys.executable, program, *flags, f"--log_dir={log_dir}"]
    with open(f"{log_dir}.txt", "w", encoding="utf-8") as printed:
        code = subprocess.run(command, stdout=printed, stderr=subprocess.STDOUT).returncode
    if code != 0:
        with open(f"{log_dir}.txt", encoding="utf-8", errors="replace") as printed:
            lines = printed.read().strip().splitlines() or [f"exit code {code}"]
        raise UserError(f"the run {log_dir} failed: {lines[-1]}")


def finished_log(log_dir, metric):
    """-> the log of a run, {stream: {step: value}}; None if the run has not ended yet"""
    try:
        log, run_settings = read_log(log_dir)
    except UserError:  # there is no log, or no line in it
        return None
    last_eval = log.get("hella" if metric == "hella" else "val", {})
    return log if run_settings["train_config"]["max_steps"] in last_eval else None


def get_log(version, seed, config):
    """Train a version with a seed, unless that has been done -> its log"""
    log_dir = os.path.join(config.out, f"{version.name}-{seed}")
    log = finished_log(log_dir, config.metric)
    if log is None:
        if describe_code(version.folder) != version.code:
            raise UserError("the files have changed since the comparison began: compare commits, "
                            "or leave the files alone until it ends")
        # if they say --save_every, an interrupted run continues from its checkpoint
        flags = ["--save_every=0", *config.flags, *version.flags, f"--seed={seed}"]
        start(os.path.join(version.folder, "train_gpt2.py"), [*flags, "--resume=auto"], log_dir)
        log = finished_log(log_dir, config.metric)
    if log is None:
        raise UserError(f"the run {log_dir} has no {config.metric} at its last step: was it "
                        "stopped, or does it lack --hellaswag?")
    return log


def score(log, metric):
    """The number to compare: a loss, or the share of HellaSwag's items that are right."""
    if metric == "train":
        return np.mean([log["train"][step] for step in sorted(log["train"])[-TRAIN_STEPS:]])
    return log[metric][max(log[metric])]


def seconds(log):
    """How long a run takes, evals left out. The median forgives a busy moment of the machine."""
    return np.median(list(log["dt"].values())) / 1000 * len(log["dt"])


def at_equal_time(versions, config):
    """Cut the steps of the slower version, so that both take as long as the faster -> versions"""
    logs = [get_log(version, config.seed, config) for version in versions]
    times = [seconds(log) for log in logs]
    slower = int(np.argmax(times))
    ratio = max(times) / min(times)
    steps = len(logs[slower]["dt"])
    fewer = max(1, round(steps / ratio))
    print(f"{'AB'[slower]} takes {ratio:.2f} times as long, so it gets {fewer} steps, not {steps}")
    # trained anew: a longer run's loss at this step is worse, its learning rate being still high
    version = versions[slower]
    shorter = replace(version, name=f"{version.name}-{fewer}-steps",
                      flags=[*version.flags, f"--max_steps={fewer}"])
    return [shorter if i == slower else v for i, v in enumerate(versions)]


# --- what the differences mean --------------------------------------------------------------------

def looks_of(pairs):
    """After how many pairs we look, and the p that decides there -> {number of pairs: p}"""
    return {pairs * i // len(LOOKS): p for i, p in enumerate(LOOKS, 1)}


def p_value(differences):
    """
    How often chance alone makes a mean this far from 0, by a paired t-test (two-sided)
    differences (..., n) -> (...); nan where all are 0
    """
    from scipy import stats
    n = differences.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = differences.mean(axis=-1) / (differences.std(axis=-1, ddof=1) / np.sqrt(n))
    return 2 * stats.t.sf(np.abs(t), n - 1)


def least_difference(differences, p):
    """The smallest true difference that as many pairs find with power 0.8 -> float"""
    from scipy import stats
    n = len(differences)
    standard_error = differences.std(ddof=1) / np.sqrt(n)
    return (stats.t.isf(p / 2, n - 1) + stats.t.isf(0.2, n - 1)) * standard_error


def more_pairs(differences, looks):
    """How many pairs until a look decides, if mean and spread stay as they are -> int or None"""
    from scipy import stats
    n = len(differences)
    for look, p in looks.items():
        standard_error = differences.std(ddof=1) / np.sqrt(look)
        if look > n and abs(differences.mean()) > stats.t.isf(p / 2, look - 1) * standard_error:
            return look - n
    return None


def verdict(differences, looks, metric):
    """Differences B - A at a look -> a sentence, and whether it is the last word"""
    n = len(differences)
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(n)
    if p_value(differences) < looks[n]:
        is_better = mean > 0 if metric == "hella" else mean < 0
        return (f"B is {'better' if is_better else 'worse'} by {abs(mean):.4f} +- {error:.4f} "
                f"(p = {p_value(differences):.1g}, {n} pairs)"), True
    if n == max(looks):
        least = max(least_difference(differences, looks[n]), 1e-4)  # the digits of a log
        return (f"no difference seen in {n} pairs ({mean:+.4f} +- {error:.4f}): one of {least:.4f} "
                "would have been found with power 0.8"), True
    more = more_pairs(differences, looks)
    return ("not decided yet: " + (f"about {more} more pairs" if more else
            f"at this rate {max(looks)} pairs will not show a difference")), False


def same_bits(logs_a, logs_b):
    """Do two versions agree in every loss and every norm, to the last digit?"""
    return all(a.get(stream) == b.get(stream) for a, b in zip(logs_a, logs_b, strict=True)
               for stream in ("train", "norm", "val", "hella"))


# --- the comparison -------------------------------------------------------------------------------

def compare(versions, config):
    """Train pair after pair and print what they say, until a look decides -> logs of A, of B"""
    looks, differences = looks_of(config.pairs), np.array([])
    logs_a, logs_b = [], []
    for seed in range(config.seed, config.seed + config.pairs):
        for version, logs in zip(versions, (logs_a, logs_b), strict=True):
            logs.append(get_log(version, seed, config))
        a, b = score(logs_a[-1], config.metric), score(logs_b[-1], config.metric)
        differences = np.append(differences, b - a)
        spread = f", spread {differences.std(ddof=1):.4f}" if len(differences) > 1 else ""
        print(f"seed {seed} | A {a:.4f} | B {b:.4f} | B - A {b - a:+.4f} | mean "
              f"{differences.mean():+.4f}{spread}", flush=True)
        if len(logs_a) == 2 and same_bits(logs_a, logs_b):
            print("A and B are identical to the bit")
            break
        if len(differences) in looks:
            text, is_last = verdict(differences, looks, config.metric)
            print(f"at equal time {text}" if config.equal_time else text, flush=True)
            if is_last:
                break
    return logs_a, logs_b


def print_time(logs_a, logs_b):
    """Say which version takes longer, if all pairs agree: on a busy machine some differ by 10%."""
    ratios = [seconds(b) / seconds(a) for a, b in zip(logs_a, logs_b, strict=True)]
    if min(ratios) > 1.05 or max(ratios) < 0.95:
        print(f"B takes {np.median(ratios):.2f} times as long; --equal_time gives both as long")


def draw(logs_of, names, metric):
    """The loss of both versions over their steps: mean, and a band of one standard deviation."""
    figure, ax = plot.import_pyplot().subplots(figsize=(7, 4), layout="constrained")
    # the evals, if there are enough for a curve
    stream = metric if len(logs_of[0][0].get(metric, {})) > 2 else "train"
    for logs, name, colour in zip(logs_of, names, plot.COLOURS, strict=False):
        steps = sorted(logs[0][stream])
        values = np.array([[log[stream][step] for step in steps] for log in logs])
        size = max(1, len(steps) // 100)  # neighbours that become one point
        n = len(steps) // size * size
        x = np.array(steps[:n]).reshape(-1, size).mean(axis=1)
        y = values[:, :n].reshape(len(logs), -1, size).mean(axis=2)
        mean, spread = y.mean(axis=0), y.std(axis=0)
        ax.plot(x, mean, color=colour, label=name)
        ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
    everything = values[:, len(steps) // 10 :]  # without the fall at the start
    ax.set_ylim(everything.min() - 0.05, everything.max() + 0.05)
    ax.set(xlabel="step", title=f"{stream}: mean and standard deviation of {len(logs)} seeds")
    ax.legend()
    return figure


def check_plan(versions, config):
    """Note in --out what is compared. UserError if another comparison is there."""
    names = ("metric", "pairs", "seed", "equal_time", "flags")
    plan = {**{name: vars(config)[name] for name in names},
            **{v.name: {"flags": v.flags, "code": v.code} for v in versions}}
    path = os.path.join(config.out, "comparison.json")
    if os.path.exists(path):
        found = read_json(path)
        differ = [name for name in plan if plan[name] != found.get(name)]
        if differ:
            raise UserError(f"{config.out} holds another comparison ({', '.join(differ)} differ): "
                            "choose another place with --out")
    os.makedirs(config.out, exist_ok=True)
    with atomic_write(path, "w", encoding="utf-8") as f:
        json.dump(plan, f, indent=1)


# --- a run once more ------------------------------------------------------------------------------

def again(log_dir):
    """Repeat a run with the code and the flags of its settings.json; compare all its losses."""
    log, settings = read_log(log_dir)
    code = settings.get("code", {})
    if not code or len(code["diff"]) >= MOST_DIFF or code["untracked"]:
        raise UserError(f"{log_dir}/settings.json does not hold the whole code: before a run that "
                        "you want to repeat, commit new files and large changes")
    _, program, *flags = shlex.split(settings["command"])  # python train_gpt2.py --T=64 ...
    copy = f"{log_dir.rstrip('/')}-again"
    with checked_out(code["commit"]) as folder:
        if code["diff"]:
            git("apply", "-", cwd=folder, stdin=code["diff"], advice="it changes a binary file")
        start(os.path.join(folder, os.path.basename(program)), flags, copy)
    repeated, _ = read_log(copy)
    steps = sorted(log["train"].keys() & repeated["train"].keys())
    for step in steps:
        before, now = log["train"][step], repeated["train"][step]
        if before != now:
            print(f"the first loss that differs is that of step {step}: {before}, now {now}")
            return
    print(f"all {len(steps)} losses are the same again")


# --- the command line -----------------------------------------------------------------------------

def parse_args(argv):
    """-> the flags of this program, with the flags for train_gpt2.py as `flags` (list)"""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse
    parser.add_argument("versions", nargs="*", help='commits or branches; ".": the files')
    parser.add_argument("--a", default="", help="flags of train_gpt2.py for A only")
    parser.add_argument("--b", default="", help="flags of train_gpt2.py for B only")
    parser.add_argument("--metric", choices=("val", "train", "hella"), default="val")
    parser.add_argument("--pairs", type=int, default=16, help="at most so many: 8, 12, 16, ...")
    parser.add_argument("--seed", type=int, default=1337, help="the seed of the first pair")
    parser.add_argument("--equal_time", action="store_true",
                        help="give the slower version fewer steps")
    parser.add_argument("--out", default="log_compare", help="where the logs and the picture go")
    parser.add_argument("--again", default="", metavar="LOG_DIR", help="repeat this run")
    args, flags = parser.parse_known_intermixed_args(argv)
    args.flags = ["--preset=laptop", *flags]
    if args.pairs < 8 or args.pairs % 4:
        raise UserError(f"--pairs={args.pairs}: must be 8, 12, 16 or another multiple of 4")
    if len(args.versions) > 2:
        raise UserError(f"two versions, not {len(args.versions)}: write flags as --name=value")
    if len(args.versions) < 2:  # with --a or --b one version is enough
        first = args.versions or (["."] if args.a or args.b else ["HEAD"])
        args.versions = [*first, first[0] if args.a or args.b else "."]
    return args


def main(argv):
    config = parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    if config.again:
        return again(config.again)
    for package in ("scipy", "matplotlib"):
        importlib.import_module(package)  # a missing one is named now, not after the runs
    with ExitStack() as stack:
        versions = []
        for name, commit, flags in zip("ab", config.versions, (config.a, config.b), strict=True):
            folder = stack.enter_context(checked_out(commit))
            flags = shlex.split(flags)
            versions.append(Version(name, commit, folder, flags, describe_code(folder)))
        a, b = versions
        if a.code == b.code and a.flags == b.flags:
            raise UserError("A and B are the same code with the same flags: change one of them")
        check_plan(versions, config)
        names = [str(version) for version in versions]
        print("\n".join(names))
        print(f"up to {config.pairs} pairs of runs. What a run prints goes into {config.out}/a-"
              f"{config.seed}.txt, and so on", flush=True)
        if config.equal_time:
            versions = at_equal_time(versions, config)
        logs = compare(versions, config)
    if not config.equal_time and not same_bits(*logs):
        print_time(*logs)
    picture = os.path.join(config.out, "bands.png")
    plot.save(draw(logs, names, config.metric), picture)
    print(f"wrote {picture}")


if __name__ == "__main__":
    run_program(main)
