"""Facts about the parts of the bench: all of them run on a CPU, with a tiny model, except for what only CUDA has."""
import json
import os
from unittest.mock import Mock

import pytest
import torch

from tools import parts
from tools.measure import made_up_shards
from tools.parts import REPORT, Setting, list_parts

# they start several processes; or a CPU multiplies float16 slowly; or they are gpt2-medium once more
LONG = ("step", "ddp", "dtypes", "gpt2-large", "gpt2-xl")
MEASUREMENTS = [pytest.param(part, m, id=f"{part}: {m.name}", marks=[pytest.mark.slow] if part in LONG else [])
                for part in REPORT for m in list_parts()[part]]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Shards for a tiny model."""
    folder = str(tmp_path_factory.mktemp("bench"))
    made_up_shards(os.path.join(folder, "shards"), 2**14, 2**10)
    return Setting(folder, tiny=True)


@pytest.mark.parametrize("part, measurement", MEASUREMENTS)
def test_every_measurement_of_the_report_gives_figures(part, measurement, setting, monkeypatch):
    """So nobody learns on a rented card that a part does not run."""
    if measurement.needs_cuda and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    monkeypatch.chdir(setting.folder)
    rows = list(measurement.function(setting))
    assert rows
    for row, figures in rows:
        numbers = [v for v in figures.values() if isinstance(v, int | float) and not isinstance(v, bool)]
        assert isinstance(row, str) and "note" not in figures, (row, figures)
        assert numbers or list(figures) == ["share of our step"], (row, figures)
        assert json.loads(json.dumps(figures)) == figures


@pytest.mark.slow
def test_each_kernel_runs_its_own_code(setting):
    """
    One after the other in one process. With what was compiled before, the second would run the first one's: the figures
    of an H200 left undecided which of two kernels they were of.
    """
    [(_, flash)] = parts.compiled_kernel(setting, "FLASH_ATTENTION")
    [(_, plain)] = parts.compiled_kernel(setting, "MATH")
    assert "flash" in flash["ran"] and "flash" not in plain["ran"]


def test_ratios_are_those_of_neighbours_in_time():
    """Not of the medians: what slows the machine down slows both."""
    assert parts.ratio_of([2, 4, 6], [1, 2, 4]) == "2.00 (1.50 to 2.00)"
    assert parts.rate_figures("tok/s", 100, [1, 2, 4], [2, 4, 6]) == {
        "tok/s": 50, "theirs, tok/s": 25, "our speed / theirs (min to max)": "2.00 (1.50 to 2.00)"}


def test_a_contender_that_dies_is_a_row(setting, monkeypatch):
    """transformers, for instance, may not fit."""
    monkeypatch.setattr(parts, "serve", os._exit)  # a TypeError: it wants one argument
    [(row, figures)] = parts.step(setting, ["transformers"])
    assert row == "transformers" and figures["note"] == "died with exit code 1: see report.log"


def test_a_contender_takes_steps_and_says_how_much_memory_it_needed(setting):
    asked = Mock(**{"recv.side_effect": ["step", "step", "memory"]})
    parts.serve(asked, "eager", setting, 2, 64)
    *steps, (B, memory) = [call.args[0] for call in asked.send.mock_calls]
    assert steps == ["done", "done"]
    assert B == 2 and memory["peak GB"] > 0 and memory["estimate GB"] > 0


def test_half_the_rows_where_memory_runs_out(setting, monkeypatch):
    """On a card other people's steps need more memory than ours."""
    tried = []

    def contender(name, gpt_config, B, T):
        tried.append(B)
        if B > 2:
            raise torch.OutOfMemoryError
        return lambda: None
    monkeypatch.setattr(parts, "contender", contender)
    asked = Mock(**{"recv.return_value": "memory"})
    parts.serve(asked, "plain", setting, 8, 64)
    assert tried == [8, 4, 2] and asked.send.mock_calls[0].args[0][0] == 2
