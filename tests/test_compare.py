"""Facts about comparing two versions: chance is seldom taken for a gain, a gain is found, nothing is trained twice."""
import json
import re
import subprocess

import numpy as np
import pytest
from scipy import stats
from small_runs import refusal

from tools import compare

# stands in for train_gpt2.py: the loss of a seed, less `gain`, plus noise of the version's own
PROGRAM = '''
import json, os, random, sys, zlib
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
steps, gain, spread = (float(flags.get(name, default)) for name, default in
                       (("max_steps", 4), ("gain", GAIN), ("spread", 0.01)))
if gain > 99:
    sys.exit("error: the loss is nan")
steps = int(steps)
own = random.Random(zlib.crc32(f"{flags['seed']} {gain} {steps}".encode()))
noise = random.Random(int(flags["seed"])).gauss(0, 0.1) + spread * own.gauss(0, 1)
os.makedirs(flags["log_dir"], exist_ok=True)
with open(os.path.join(flags["log_dir"], "log.txt"), "w") as f:
    for step in range(steps):
        f.write(f"{step} train {5 - gain + noise:.6f}\\n{step} dt {float(flags.get('ms', 10))}\\n")
    f.write(f"{steps} val {4 - gain + noise:.6f}\\n{steps} hella {0.3 + gain + noise:.6f}\\n")
with open(os.path.join(flags["log_dir"], "settings.json"), "w") as f:
    json.dump({"train_config": {"max_steps": steps}}, f)
with open("started.txt", "a") as f:
    f.write(os.path.basename(flags["log_dir"]) + "\\n")
'''


def commit(folder, program, message):
    (folder / "train_gpt2.py").write_text(program)
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@example.com"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", message], check=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with two commits, of which the second gains 0.1; we stand beside it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    commit(folder, PROGRAM.replace("GAIN", "0"), "as it was")
    commit(folder, PROGRAM.replace("GAIN", "0.1"), "a gain")
    monkeypatch.setattr(compare, "ROOT", str(folder))
    monkeypatch.setattr(compare, "draw", lambda logs, names, metric: names)  # drawing takes a second
    monkeypatch.setattr(compare.plot, "save", lambda names, path: None)
    monkeypatch.chdir(tmp_path)
    return folder


def started(folder):
    """Which runs have been started, in this order -> list of names"""
    return (folder.parent / "started.txt").read_text().split()


# --- what a difference means ----------------------------------------------------------------------

def decided_by(differences):
    """Differences (simulations, pairs) -> {look: share of the simulations that have been decided by then}"""
    decided, shares = np.zeros(len(differences), bool), {}
    for n, p in compare.looks_of(differences.shape[1]).items():
        decided |= compare.p_value(differences[:, :n]) < p
        shares[n] = decided.mean()
    return shares


@pytest.mark.parametrize("pairs", [8, 16, 32])
def test_false_alarms_are_rare(pairs):
    """Without any effect, at most 5.8% of 10,000 comparisons see one, although they may stop at four looks."""
    noise = np.random.default_rng(0).standard_normal((10_000, pairs))
    assert 0.045 < decided_by(noise)[pairs] <= 0.058
    every_pair = np.zeros(10_000, bool)  # what people do: stop as soon as p < 0.05
    for n in range(2, pairs + 1):
        every_pair |= compare.p_value(noise[:, :n]) < 0.05
    assert every_pair.mean() > 0.15


@pytest.mark.parametrize("effect", [0.8, 1.5, 3.0])
def test_a_planted_gain_is_found_when_theory_says(effect):
    """
    A gain of `effect` standard deviations. At a look t has a noncentral t distribution, so a look decides at least with
    that power, and at most with the sum of the powers so far.
    """
    differences = np.random.default_rng(1).standard_normal((10_000, 16)) + effect
    at_most = 0
    for (n, share), p in zip(decided_by(differences).items(), compare.LOOKS, strict=True):
        power = stats.nct.sf(stats.t.isf(p / 2, n - 1), n - 1, effect * np.sqrt(n))
        at_most += power
        assert power - 0.01 < share < at_most + 0.01, n


def test_the_p_value_is_scipys():
    differences = np.random.default_rng(2).standard_normal((5, 8)) + 0.5
    assert compare.p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0, axis=1).pvalue)


def test_the_difference_that_would_have_been_found():
    """One of that size is found with power 0.8: planted in 10,000 comparisons, in about so many."""
    noise = np.random.default_rng(3).standard_normal((10_000, 16))
    least = compare.least_difference(noise[0] / noise[0].std(ddof=1), compare.LOOKS[-1])
    assert decided_by(noise + least)[16] == pytest.approx(0.8, abs=0.03)


ZIGZAG = np.array([1, -1] * 8)  # mean 0; its standard deviation is 1.03 with 16 values, 1.07 with 8


@pytest.mark.parametrize("differences, metric, sentence, is_last", [
    (-0.05 + 0.01 * ZIGZAG[:8], "val", "B is better by 0.0500 +- 0.0038 (p = 3e-06, 8 pairs)", True),
    (0.05 + 0.01 * ZIGZAG[:8], "train", "B is worse by 0.0500 +- 0.0038 (p = 3e-06, 8 pairs)", True),
    (0.05 + 0.01 * ZIGZAG[:8], "hella", "B is better by 0.0500 +- 0.0038 (p = 3e-06, 8 pairs)", True),
    (0.01 * ZIGZAG, "val",
     "no difference seen in 16 pairs (+0.0000 +- 0.0026): one of 0.0079 would have been found with power 0.8", True),
    (-0.01 + 0.01 * ZIGZAG[:8], "val", "not decided yet: about 4 more pairs", False),
    (0.001 + 0.01 * ZIGZAG[:8], "val", "not decided yet: at this rate 16 pairs will not show a difference", False),
])
def test_the_sentences(differences, metric, sentence, is_last):
    """A loss is better if it is lower, HellaSwag if it is higher."""
    assert compare.verdict(differences, compare.looks_of(16), metric) == (sentence, is_last)


# --- the runs -------------------------------------------------------------------------------------

def test_a_commit_that_helps(repository, capsys):
    """A's and B's runs alternate, with the same seeds, in a copy of each commit that is gone afterwards."""
    compare.main(["HEAD~1", "HEAD", "--pairs=8", "--spread=0.001", "--out=out"])
    out = capsys.readouterr().out
    assert re.search(r"not decided yet: about 2 more pairs\n(.*\n){2}B is better by 0\.(09|10)\d\d \+- 0\.00\d+ "
                     r"\(p = \S+, 4 pairs\)", out)
    assert started(repository)[:4] == ["a-1337", "b-1337", "a-1338", "b-1338"]
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True).stdout
    assert len(worktrees.splitlines()) == 1


def test_identical_to_the_bit(repository, capsys):
    """The files differ from the commit by a comment alone: two pairs are enough."""
    (repository / "train_gpt2.py").write_text(PROGRAM.replace("GAIN", "0.1") + "# a comment\n")
    compare.main(["--out=out", "--seed=7"])
    out = capsys.readouterr().out
    assert "A and B are identical to the bit" in out and started(repository) == ["a-7", "b-7", "a-8", "b-8"]
    assert re.match(r"A: HEAD \(\w{9}\)\nB: \. \(\w{9} and changes\)\n", out)
    plan = json.loads((repository.parent / "out" / "comparison.json").read_text())
    assert "+# a comment" in plan["b"]["code"]["diff"] and plan["a"]["code"]["clean"]


def test_an_interrupted_comparison_goes_on(repository, capsys, monkeypatch):
    """Runs that have ended are not repeated, and the result is the same. Another comparison needs another --out."""
    flags = ["--a=--gain=0", "--b=--gain=0.2", "--pairs=8"]
    compare.main([*flags, "--out=whole"])
    whole = capsys.readouterr().out
    start = compare.start

    def interrupted(program, flags, log_dir):
        if "b-1338" in log_dir:
            raise KeyboardInterrupt
        start(program, flags, log_dir)
    with monkeypatch.context() as m:
        m.setattr(compare, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare.main([*flags, "--out=parts"])
    assert "a-1338" in started(repository)[-1]
    number = len(started(repository))
    compare.main([*flags, "--out=parts"])
    assert started(repository)[number] == "b-1338"
    assert capsys.readouterr().out.endswith(whole.replace("whole", "parts"))
    assert refusal(compare.main, [*flags, "--metric=train", "--out=parts"]) == (
        "parts holds another comparison (metric differ): choose another place with --out")


@pytest.mark.parametrize("milliseconds, said", [
    ((20, 12), "B takes 1.60 times as long; --equal_time gives both as long\n"), ((20, 9), "")])
def test_a_version_that_takes_longer(milliseconds, said, capsys):
    """It is said if all pairs agree: the times of a busy machine vary."""
    compare.print_time([{"dt": {0: 10.0}}] * 2, [{"dt": {0: ms}} for ms in milliseconds])
    assert capsys.readouterr().out == said


def test_equal_time(repository, capsys):
    """B needs twice as long, so it gets half the steps, in runs of its own: half of a longer run is not annealed."""
    flags = ["--a=--gain=0", "--b=--gain=0.2 --ms=20", "--max_steps=40", "--pairs=8"]
    compare.main([*flags, "--out=time", "--equal_time"])
    out = capsys.readouterr().out
    assert "B takes 2.00 times as long, so it gets 20 steps, not 40" in out and "at equal time B is better" in out
    assert started(repository)[1:4] == ["b-1337", "b-20-steps-1337", "a-1338"]


def test_what_cannot_be_compared(repository):
    """One line each."""
    assert refusal(compare.main, ["--out=out"]).startswith("A and B are the same code")
    assert 'name a commit, a branch, or "."' in refusal(compare.main, ["nothing", "--out=out"])
    assert refusal(compare.main, ["--pairs=6"]).startswith("--pairs=6: must be")
    assert "failed: error: the loss is nan" in refusal(compare.main, ["HEAD~1", "HEAD", "--gain=100", "--out=nan"])


def test_files_that_change_during_a_comparison(repository, monkeypatch):
    """Half of the pairs with other code would be silently wrong."""
    start = compare.start

    def edited(program, flags, log_dir):
        start(program, flags, log_dir)
        (repository / "train_gpt2.py").write_text("another program\n")
    monkeypatch.setattr(compare, "start", edited)
    assert "changed since" in refusal(compare.main, ["--a=--gain=0", "--b=--gain=1", "--out=out"])


def test_the_picture_has_two_bands():
    """Mean and standard deviation at each eval; of the train loss where a run has too few evals for a curve."""
    logs = [{"val": {0: 5.0, 10: 3.0 + i, 20: 2.0}, "train": {step: 4.0 for step in range(300)}} for i in (0, 2)]
    [ax] = compare.draw([logs, logs], ["A: one", "B: two"], "val").axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[5, 4, 2]] * 2 and len(ax.collections) == 2
    band = ax.collections[0].get_paths()[0].vertices.tolist()
    assert {y for x, y in band if x == 10} == {3, 5}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A: one", "B: two"]
    [ax] = compare.draw([logs, logs], ["A", "B"], "hella").axes
    assert ax.get_title().startswith("train: ") and len(ax.lines[0].get_xdata()) == 100


# --- a run once more ------------------------------------------------------------------------------

def test_a_run_is_repeated_from_its_settings(repository, capsys):
    """With the commit, the diff and the flags that settings.json names, whatever the files are now."""
    (repository / "train_gpt2.py").write_text(PROGRAM.replace("GAIN", "0.3"))
    command = ["--seed=5", "--max_steps=7"]
    compare.start(str(repository / "train_gpt2.py"), command, "log")
    code = compare.describe_code(str(repository))
    settings = {"command": " ".join(["python", "train_gpt2.py", *command]), "code": code}
    (repository.parent / "log" / "settings.json").write_text(json.dumps(settings))
    (repository / "train_gpt2.py").write_text("nothing is left of it\n")
    compare.main(["--again=log"])
    assert capsys.readouterr().out == "all 7 losses are the same again\n"
    settings["code"]["diff"] = ""
    (repository.parent / "log" / "settings.json").write_text(json.dumps(settings))
    compare.main(["--again=log"])
    assert capsys.readouterr().out.startswith("the first loss that differs is that of step 0: ")
    settings["code"]["untracked"] = ["support/new.py"]
    (repository.parent / "log" / "settings.json").write_text(json.dumps(settings))
    assert "does not hold the whole code" in refusal(compare.main, ["--again=log"])
