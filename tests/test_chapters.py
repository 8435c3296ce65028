"""
The chapters of the history can be listed and measured again, and docs/reading.md says of them what was measured;
exercises stay out of the way until they are called.
"""
import importlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import pytest
from small_runs import ROOT, read_log
from tqdm import tqdm

from tools import chapters as tool

CHAPTERS = os.path.join(ROOT, "tools", "chapters.py")
with open(os.path.join(ROOT, "docs", "reading.md"), encoding="utf-8") as f:
    PAGE = f.read()


def read_record():
    """assets/chapters.json -> list of dicts: chapter, commit, seed, losses, cpu_ms"""
    with open(os.path.join(ROOT, "assets", "chapters.json"), encoding="utf-8") as f:
        return json.load(f)["runs"]


def effect(runs, before, number):
    """The mean loss of the last ten steps before a chapter and with it, and the larger spread of two seeds."""
    means = {(run["chapter"], run["seed"]): statistics.mean(run["losses"][-10:]) for run in runs}
    spreads = [abs(means[chapter, 1337] - means[chapter, 1338]) for chapter in (before, number)
               if (chapter, 1338) in means]
    return means[before, 1337], means[number, 1337], max(spreads)


def chapters(*args, script=CHAPTERS):
    return subprocess.run([sys.executable, script, *args], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def history():
    """What `python tools/chapters.py` lists. A source archive or a shallow clone has no history to list."""
    result = chapters()
    if "git clone" in result.stderr:
        pytest.skip("the chapters are commits, and this copy of the repository has no history")
    return result.stdout.splitlines()


def test_the_history_begins_with_thirty_chapters(history):
    assert len(history) == 30
    assert "The nn.Module" in history[0] and "Everything a user can get wrong" in history[-1]


def test_a_chapter_is_run_as_it_was(history):
    """Chapter 1 has a head that is not tied yet: 163M parameters. The files of today are not what runs."""
    result = chapters("1")
    assert result.returncode == 0 and "chapter  1 | 163,037,184 parameters" in result.stdout


def test_other_random_weights_for_a_chapter(history, tmp_path):
    """Chapters from the eleventh on set their seed themselves: another one is written in its place."""
    commit = history[10].split()[1]
    tool.unpack(commit, tmp_path / "lecture")
    tool.unpack(commit, tmp_path / "other", seed=1338)
    program, other = ((tmp_path / name / "train_gpt2.py").read_text() for name in ("lecture", "other"))
    assert "torch.manual_seed(1337)" in program and program != other
    assert other == program.replace("torch.manual_seed(1337)", "torch.manual_seed(1338)")
    assert "torch.manual_seed(1338); " in tool.with_seed(tool.SEEDED, 1338)[1]


def test_a_run_is_told_by_the_mean_of_its_last_ten_steps():
    """The loss of one step is that of 128 tokens: it moves by more than most chapters do."""
    run = tool.Run("124,439,808 parameters", [10.0] * 40 + [7.0, 6.0] * 5, 1612.4)
    assert tool.describe(run) == ("124,439,808 parameters; loss 10.0000 at step 0, 6.0000 at 49; mean of the last ten "
                                  "6.500; 1612 ms of CPU a step")
    assert tool.describe(tool.Run("a\nlogits (4, 32)\n", [], None)) == "no steps yet; it prints: logits (4, 32)"


def test_a_bar_counts_the_steps(tmp_path):
    """The program is stopped when the bar is full."""
    program = "import itertools\nfor i in itertools.count(): print(f'step {i} | loss: {9 - i}.5', flush=True)"
    with tqdm(total=3, file=io.StringIO()) as bar:
        run = tool.run_steps(["-c", program], tmp_path, bar)
    assert run.losses == [9.5, 8.5, 7.5] and bar.n == 3


@pytest.mark.slow
def test_what_is_wrong_in_a_message_is_said_below_it(history):
    """The first messages have losses of other seeds; beside them stand those of 1337, as recorded."""
    ends = {run["chapter"]: (run["losses"][0], run["losses"][-1]) for run in read_record() if run["seed"] == 1337}
    said = {number: re.findall(r"\d+\.\d{4}", text) for number, text in tool.CORRECTIONS.items()}
    first, last = ([f"{ends[number][i]:.4f}" for number in (8, 9, 10)] for i in (0, 1))
    assert said == {7: [first[0]], 8: [first[0], last[0]], 9: [first[1], last[1]], 10: [last[2], last[1]],
                    11: [last[2]]}
    out = chapters("7").stdout
    assert "11.0582" in out and out.index("11.0582") < out.index("Today: The loss above") < out.index("Measured now")


def test_the_recorded_runs_are_of_this_history(history):
    """Each chapter of the record is a commit, and its runs have 50 finite losses each."""
    for run in read_record():
        assert history[run["chapter"] - 1].split()[1].startswith(run["commit"][:7])
        assert len(run["losses"]) == tool.STEPS and 0 < min(run["losses"]) < max(run["losses"]) < 20


def test_a_chapter_that_does_not_exist(history):
    result = chapters("31")
    assert result.returncode == 2 and result.stderr.startswith("error: chapters are 1 to 30")
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_without_a_history_there_is_one_line(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copytree(os.path.join(ROOT, "support"), tmp_path / "support")
    shutil.copy(os.path.join(ROOT, "tools", "__init__.py"), tmp_path / "tools")
    result = chapters(script=shutil.copy(CHAPTERS, tmp_path / "tools"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "git clone" in result.stderr


@pytest.mark.slow
def test_the_default_test_command_does_not_meet_the_exercises():
    """They fail until somebody does them: `python -m pytest` must neither run nor import them. Named, they run."""
    def collected(*args):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    for everything in (collected(), collected(".")):
        assert "test_chapters.py::" in everything and "\nexercises/" not in everything
    assert "test_exercises.py::test_rope" in collected("exercises", "-k", "rope")


# --- docs/reading.md ------------------------------------------------------------------------------

def rows():
    """The table of the chapters -> list of rows, each a list of cells"""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| \d+ ", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_chapter_stands_beside_its_commit(history):
    """`git show ID` shows the chapter that the page talks of, in the table and everywhere else."""
    chapters = {int(line.split()[0]): line.split()[1] for line in history}
    table = [re.match(r"(\d+) `(\w+)`", row[0]).groups() for row in rows() if "`" in row[0]]
    assert {int(number): commit for number, commit in table} == chapters
    assert set(re.findall(r"git show (\w{7})", PAGE)) <= set(chapters.values())
    for number, commit in re.findall(r"chapter (\d+)[^`\n]*`git show (\w{7})", PAGE):
        assert chapters[int(number)] == commit


def test_the_effects_on_the_page_are_those_of_the_record():
    """The mean loss of the last ten of 50 steps, before and after, and how far two seeds are apart."""
    runs = read_record()
    told = {int(row[0].split()[0]): row[3:6] for row in rows() if "`" in row[0]}
    for number, before in ((9, 8), (10, 9), (11, 10), (16, 15), (17, 16), (18, 17), (19, 18), (20, 19)):
        assert told[number] == [f"{value:.3f}" for value in effect(runs, before, number)], f"chapter {number}"
    times = {run["chapter"]: f"{run['cpu_ms']:.0f} ms" for run in runs if run["seed"] == tool.SEED}
    assert told[13][:2] == [times[12], times[13]]
    assert f"{times[18]} of CPU before, {times[19]} after" in PAGE


def test_what_the_page_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert os.path.exists(os.path.join(ROOT, "docs", target)), target
    anchors = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
               for line in PAGE.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


# An edit that a prediction asks for, its flags, and the first numbers that its answer gives: (step, stream, value)
PREDICTIONS = {
    "nothing": ("", "", "", [(0, "train", "4.852"), (0, "norm", "4.877")]),
    "no shift": ("x, y = buf[:-1].view(B, T), buf[1:].view(B, T)", "x, y = buf[:-1].view(B, T), buf[:-1].view(B, T)",
                 "", [(0, "train", "3.933")]),
    "no division": ("loss = loss / grad_accum_steps", "pass", "--B=2",
                    [(0, "train", "19.409"), (0, "norm", "19.506")]),
    "no zero_grad": ("optimizer.zero_grad(set_to_none=True)", "pass", "", [(1, "norm", "6.476")]),
    "no stream": ("x = x + self.mlp(self.ln_2(x))", "x = self.mlp(self.ln_2(x))", "", [(0, "norm", "12.8")]),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_first_numbers_of_a_prediction(name, tmp_path, monkeypatch):
    """Whoever makes the edit that the page asks for sees the first losses and norms of its answer."""
    old, new, flags, numbers = PREDICTIONS[name]
    with open(os.path.join(ROOT, "train_gpt2.py"), encoding="utf-8") as f:
        program = f.read()
    if old:
        assert old in " ".join(PAGE.split()) or new in " ".join(PAGE.split())
        assert program.count(old) == 1
    (tmp_path / "edited.py").write_text(program.replace(old, new) if old else program, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "edited", raising=False)  # that of another prediction
    edited = importlib.import_module("edited")
    edited.run(["--preset=laptop", f"--data_root={ROOT}/input.txt", "--device=cpu", "--max_steps=2", *flags.split(),
                "--eval_every=0", "--val_tokens=64", "--save_every=0", f"--log_dir={tmp_path / 'log'}"])
    log = read_log(tmp_path / "log")
    for step, stream, value in numbers:
        digits = len(value.split(".")[1])
        assert f"{log[stream][step]:.{digits}f}" == value
        assert value in PAGE


def test_the_lines_that_predictions_edit_are_there():
    """A prediction is about a line of today's train_gpt2.py."""
    with open(os.path.join(ROOT, "train_gpt2.py"), encoding="utf-8") as f:
        program = f.read()
    for line in ("is_causal=True", "+ self.transformer.wpe(position_ids)",
                 "model.require_backward_grad_sync = micro_step == grad_accum_steps - 1", "_, loss = model(x, y)"):
        assert program.count(line) == 1, line
