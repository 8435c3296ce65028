"""Facts about the bench: its command line and its report."""
import contextlib
import functools
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from small_runs import ROOT, refusal

from tools import bench
from tools.bench import Report
from tools.parts import BENCH, REPORT, Measurement, Setting, list_parts


def test_parts_are_named_with_commas():
    """Without names: the bench's parts, or with --gpu the report's."""
    assert bench.parse(["--parts=step,attention"]).parts == ["step", "attention"]
    assert bench.parse([]).parts == list(BENCH) and bench.parse(["--gpu"]).parts == list(REPORT)
    assert set(BENCH) | set(REPORT) == set(list_parts())


def test_the_report_begins_with_what_one_wants_first():
    """After four minutes of a rented card the step, the evals and a checkpoint are known, in ten nearly all."""
    assert REPORT[:4] == ("environment", "step", "evals", "checkpoint")
    assert [part for part in list_parts() if part in REPORT] == list(REPORT)  # and so in report.md
    first, *_ = list_parts()["step"]
    assert first.function.keywords["names"][0] == "ours"


def test_a_row_is_written_as_it_comes(tmp_path, monkeypatch):
    """Before the next one is measured, which may kill the machine."""
    rows, on_disk = [("first", {"n": 1}), ("second", {"n": 2}), None], []

    class Child(contextlib.AbstractContextManager):
        def __init__(self, *args):
            pass

        def __exit__(self, *error):
            pass

        def receive(self, seconds):
            if (tmp_path / "report.json").exists():
                written = json.loads((tmp_path / "report.json").read_text())["rows"]
                on_disk.append([row["row"] for row in written])
            return rows.pop(0)
    monkeypatch.setattr(bench, "Child", Child)
    bench.measure("step", Measurement("name", None), Setting(str(tmp_path)), Report(str(tmp_path), "a CPU"),
                  time.monotonic() + 60)
    assert on_disk == [["first"], ["first", "second"]]


@pytest.mark.slow
def test_one_command_writes_the_report(tmp_path):
    """Each measurement in a process of its own. Without a card --gpu takes tiny models."""
    command = [sys.executable, os.path.join(ROOT, "tools", "bench.py"), f"--out={tmp_path}", "--gpu", "--quick",
               "--parts=attention,checkpoint"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    figures = {row["row"]: row["figures"] for row in rows}
    assert figures["MATH, B=2"]["ms"] > 0 and figures["CUDNN_ATTENTION"] == {"note": "needs CUDA"}
    assert figures["checksums alone"]["seconds"] > 0 and {row["part"] for row in rows} == {"attention", "checkpoint"}
    page = (tmp_path / "report.md").read_text()
    assert "no CUDA, tiny models" in page and page.index("### checkpoint") < page.index("### attention")


def two_rows_and_the_end(setting, deed):
    """A measurement."""
    yield "first", {"n": 1}
    if deed == "fail":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    yield "second", {"n": 2}


@pytest.mark.parametrize("deed, seconds, rows", [
    ("go on", 60, [("first", {"n": 1}), ("second", {"n": 2})]),
    ("fail", 60, [("first", {"n": 1}), ("name", {"note": "died with exit code 1: see report.log"})]),
    ("hang", 0.1, [("name", {"note": "took too long: see report.log"})])])  # it does not even start in that time
def test_what_dies_or_hangs_is_a_row(deed, seconds, rows, tmp_path):
    """The rows before it stay, and report.log has what it printed."""
    report = Report(str(tmp_path), "a CPU")
    measurement = Measurement("name", functools.partial(two_rows_and_the_end, deed=deed))
    bench.measure("step", measurement, Setting(str(tmp_path)), report, time.monotonic() + seconds)
    assert [(row["row"], row["figures"]) for row in report.rows] == rows
    if deed == "fail":
        assert "illegal memory access" in (tmp_path / "report.log").read_text()


def test_only_a_short_list_needs_cuda(tmp_path, monkeypatch):
    """On a CPU its rows say so; every other measurement would be taken, if there were time."""
    monkeypatch.setattr(bench, "DEVICE", torch.device("cpu"))
    report = Report(str(tmp_path), "a CPU")
    for part, measurements in list_parts().items():
        for measurement in measurements:
            bench.measure(part, measurement, Setting(str(tmp_path)), report, end=time.monotonic() - 1)
    notes = {"needs CUDA": [], "not measured: no time was left": []}
    for row in report.rows:
        notes[row["figures"]["note"]].append(row["row"])
    needs_cuda, others = notes.values()
    assert len(needs_cuda) == 9 and all("ATTENTION" in name or name.endswith(" GB") for name in needs_cuda)
    assert len(others) + 9 == sum(map(len, list_parts().values()))


def test_what_is_measured_again_replaces_what_was_there(tmp_path):
    """A row of another machine stays, under a heading of its own: no figure stands under another card's name."""
    here, there = Report(str(tmp_path), "card A"), Report(str(tmp_path), "card B")
    here.add("step", "ours", "ours", {"ms a step": 140.25})
    there.read()
    there.add("step", "ours", "ours", {"ms a step": 300.5, "note": "a | in it"})
    here = Report(str(tmp_path), "card A")
    here.read()
    here.forget("step", "ours")
    here.add("step", "ours", "ours", {"ms a step": 139.75})
    page = (tmp_path / "report.md").read_text()
    assert page.count("| ours |") == 2 and "140.2" not in page
    assert "| ours | 300.5 | a / in it |" in page and "| ours | 139.8 |" in page
    assert page.index("## card B") < page.index("300.5") < page.index("## card A") < page.index("139.8")


def test_a_part_that_does_not_exist_is_refused():
    assert "there are environment, step" in refusal(bench.main, ["--parts=stpe"])


@pytest.mark.parametrize("figure, text", [(467123.4, "467,123"), (139.234, "139.2"), (1.23456, "1.235"), (7, "7"),
                                          (0.00012345, "0.000123"), (0.0, "0"), ("41%", "41%"), (float("nan"), "nan")])
def test_three_or_four_digits_are_shown(figure, text):
    """More would only say that a machine is never twice the same."""
    assert bench.show(figure) == text
