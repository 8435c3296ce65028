"""Facts about the report on a card: all of it runs on a CPU, with a tiny model, but for what only CUDA has."""
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from small_runs import ROOT, refusal

from tools import gpu_report
from tools.gpu_report import CUDA_ONLY, Report, Setting, list_parts

# torchrun starts their processes; or a CPU multiplies float16 slowly; or they are gpt2-medium once more
LONG = ("torchrun", "cards", "dtypes", "gpt2-large", "gpt2-xl")
MEASUREMENTS = [pytest.param(part, m, id=f"{part}: {m.name}", marks=[pytest.mark.slow] if part in LONG else [])
                for part, measurements in list_parts().items() for m in measurements]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Shards and items for a tiny model."""
    made = Setting(str(tmp_path_factory.mktemp("report")), tiny=True, quick=False, compile=False)
    gpu_report.prepare(made)
    return made


@pytest.mark.parametrize("part, measurement", MEASUREMENTS)
def test_every_measurement_gives_figures(part, measurement, setting, monkeypatch):
    """On a CPU too, but for those of a short list."""
    if f"{part}: {measurement.name}" in CUDA_ONLY and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    monkeypatch.chdir(setting.folder)
    gpu_report.start_afresh()
    rows = list(measurement.function(setting))
    assert rows
    for row, figures in rows:
        numbers = [v for v in figures.values() if isinstance(v, int | float) and not isinstance(v, bool)]
        assert isinstance(row, str) and numbers and "note" not in figures, (row, figures)
        assert json.loads(json.dumps(figures)) == figures


def test_only_a_short_list_needs_cuda(tmp_path, monkeypatch):
    """Its rows say so without one; all others are handed to a process."""
    asked = []

    def measure_part(command, names, log, deadline, add):
        asked.extend(names)
    monkeypatch.setattr(gpu_report, "measure_part", measure_part)
    monkeypatch.setattr(gpu_report, "DEVICE", torch.device("cpu"))
    report = Report(str(tmp_path), "a CPU")
    for part in list_parts():
        gpu_report.report_part(part, Setting(str(tmp_path), True, False), report, time.monotonic() + 60)
    needs_cuda = [f"{row['part']}: {row['row']}" for row in report.rows if row["figures"] == {"note": "needs CUDA"}]
    assert sorted(needs_cuda) == sorted(CUDA_ONLY) and len(CUDA_ONLY) <= 5
    assert len(asked) + len(CUDA_ONLY) == sum(map(len, list_parts().values()))


def test_one_command_writes_the_report(tmp_path):
    """In processes of its own; a second call adds to report.json."""
    command = [sys.executable, os.path.join(ROOT, "tools", "gpu_report.py"), f"--out={tmp_path}", "--quick"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for parts in ("attention", "checkpoint"):
        result = subprocess.run([*command, f"--parts={parts}"], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    figures = {row["row"]: row["figures"] for row in rows}
    assert figures["MATH, B=2"]["ms"] > 0 and figures["CUDNN_ATTENTION"] == {"note": "needs CUDA"}
    assert figures["save"]["seconds"] > 0 and {row["part"] for row in rows} == {"attention", "checkpoint"}
    page = (tmp_path / "report.md").read_text()
    assert "no CUDA, tiny models" in page and page.index("### attention") < page.index("### checkpoint")


def test_what_is_measured_again_replaces_what_was_there(tmp_path):
    """A row of another machine stays, under a heading of its own: no figure stands under another card's name."""
    here, there = Report(str(tmp_path), "card A"), Report(str(tmp_path), "card B")
    here.add("step", "compiled", "--compile", {"ms a step": 140.25})
    there.read()
    there.add("step", "compiled", "--compile", {"ms a step": 300.5, "note": "a | in it"})
    here = Report(str(tmp_path), "card A")
    here.read()
    here.forget("step", ["compiled"])
    here.add("step", "compiled", "--compile", {"ms a step": 139.75})
    page = (tmp_path / "report.md").read_text()
    assert page.count("| --compile |") == 2 and "140.2" not in page
    assert "| --compile | 300.5 | a / in it |" in page and "| --compile | 139.8 |" in page
    assert page.index("## card B") < page.index("300.5") < page.index("## card A") < page.index("139.8")


def test_where_the_time_is_over_the_rows_say_so(tmp_path):
    """Nothing is left out without a word."""
    report = Report(str(tmp_path), "a card")
    gpu_report.report_part("sampling", Setting(str(tmp_path), True, True), report, time.monotonic() - 1)
    assert [row["figures"]["note"] for row in report.rows] == ["not measured: no time was left"] * 2


def test_wrong_words_are_refused(tmp_path):
    """A part that there is not, and a report.json that is somebody else's."""
    assert "there are environment, step" in refusal(gpu_report.main, ["--parts=stpe"])
    (tmp_path / "report.json").write_text("[1]")
    assert "not a report" in refusal(Report(str(tmp_path), "a card").read)


def test_three_or_four_digits_are_shown():
    """More would only say that a machine is never twice the same."""
    assert [gpu_report.show(x) for x in (467123.4, 139.234, 1.23456, 0.00012345, 0.0, 7, "41.2%", float("nan"))] == [
        "467,123", "139.2", "1.235", "0.000123", "0", "7", "41.2%", "nan"]
