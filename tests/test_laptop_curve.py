"""Facts about what is normal for the laptop preset."""
import json
import os
import re

import pytest
from small_runs import ROOT

from support.health import compare_to_reference
from support.settings import resolve
from tools import laptop_curve
from train_gpt2 import PRESETS, GPTConfig, TrainConfig

LAPTOP = ["--preset=laptop", f"--data_root={ROOT}/input.txt"]


def configs(*flags):
    return resolve([*LAPTOP, *flags], "", GPTConfig, TrainConfig, PRESETS, load_model=None)[:2]


@pytest.mark.parametrize("page", ["docs/curves.md", "docs/zh/curves.md"])
def test_the_table_on_the_page_is_that_of_the_curve(page):
    with open(os.path.join(ROOT, "assets", "laptop_curve.json"), encoding="utf-8") as f:
        val = json.load(f)["val"]
    with open(os.path.join(ROOT, page), encoding="utf-8") as f:
        section = f.read().split("\n## ")[1]
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (\S+) \|$", section, re.MULTILINE)
    assert len(rows) == 10
    assert rows == [(step, f"{val[step][0]:.3f}", f"{3 * val[step][1]:.3f}") for step, *_ in rows]


def test_a_run_of_the_preset_is_compared_with_ten_seeds():
    """The curve is that of today's preset; three times the spread of the seeds is normal, more is worth a look."""
    with open(os.path.join(ROOT, "assets", "laptop_curve.json"), encoding="utf-8") as f:
        curve = json.load(f)["val"]
    gpt_config, config = configs()
    last = config.max_steps
    assert set(curve) == {str(step) for step in (*range(0, last, config.eval_every), last)}
    mean, spread = curve[str(last)]
    assert mean < 1.81 and 0 < spread < 0.01
    assert compare_to_reference(last, mean, gpt_config, config).endswith("in the band")
    assert f"ten seeds {mean:.4f}" in compare_to_reference(last, mean + 0.1, gpt_config, config)
    assert "OUTSIDE" in compare_to_reference(last, mean + 0.1, gpt_config, config)


def test_other_runs_are_not_compared(text):
    """Another shape, rate, text or length is another curve."""
    for flags in (["--n_layer=2"], ["--max_lr=1e-3"], ["--max_steps=100"], [f"--data_root={text}"], ["--seed=1"]):
        said = compare_to_reference(0, 4.87, *configs(*flags))
        assert bool(said) == (flags == ["--seed=1"]), flags


def test_the_curve_is_made_of_seeds(tmp_path, monkeypatch, capsys):
    """Mean and standard deviation of each step, with the settings that they are for."""
    monkeypatch.setattr(laptop_curve, "val_losses", lambda seed: {0: 4.0 + seed, 10: 2.0})
    monkeypatch.setattr(laptop_curve, "SEEDS", range(1, 4))
    monkeypatch.setattr(laptop_curve, "OUT", str(tmp_path / "curve.json"))
    laptop_curve.main([])
    made = json.loads((tmp_path / "curve.json").read_text())
    assert made["val"] == {"0": [6.0, 1.0], "10": [2.0, 0.0]} and made["settings"]["n_layer"] == 4
    assert "step    10 | 2.0000 +- 0.0000" in capsys.readouterr().out
