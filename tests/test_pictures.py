"""Facts about the pictures of the docs: they are drawn from this code and its data, for light and for dark pages."""
import glob
import math
import os
import re
import xml.etree.ElementTree as ElementTree

import pytest
from small_runs import ROOT

from support.files import asset, read_json
from support.settings import resolve
from tools import pictures
from train_gpt2 import PRESETS, GPTConfig, TrainConfig

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn():
    """All pictures, drawn now: {name: SVG}"""
    return {name: draw() for name, draw in pictures.PICTURES.items()}


def test_the_pictures_in_assets_are_what_is_drawn_today(drawn):
    """Whoever changes the schedule, the laptop's curve or a pen draws them again."""
    in_assets = {}
    for path in glob.glob(os.path.join(ROOT, "assets", "*.svg")):
        with open(path, encoding="utf-8") as f:
            in_assets[os.path.basename(path).removesuffix(".svg")] = f.read()
    assert in_assets.keys() == drawn.keys()
    changed = [name for name in drawn if drawn[name] != in_assets[name]]
    assert changed == [], "run python tools/pictures.py"


def test_the_command_writes_every_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "ASSETS", str(tmp_path))
    monkeypatch.setattr(pictures, "PICTURES", {"mask": pictures.draw_mask})
    pictures.main([])
    assert (tmp_path / "mask.svg").read_text(encoding="utf-8") == pictures.draw_mask()


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_can_be_read_at_850_pixels(name, drawn):
    """Text of 15 or more that ends inside the paper, colours for dark pages, a description for who cannot see it."""
    root = ElementTree.fromstring(drawn[name])
    _, _, width, height = map(float, root.get("viewBox").split())
    assert width == 850 and height < 600
    style = root.find(f"{SVG}style").text
    assert "prefers-color-scheme: dark" in style
    assert min(int(size) for size in re.findall(r"(\d+)px", style)) >= 15
    assert len(root.find(f"{SVG}title").text) > 10 and len(root.find(f"{SVG}desc").text) > 50
    for text in root.iter(f"{SVG}text"):
        looks = text.get("class").split()
        long = len(text.text) * (7.0 if "small" in looks else 8.5)  # letters are about half as wide as high
        start = {"left": 0.0, "right": -long}.get(next((k for k in looks if k in ("left", "right")), ""), -long / 2)
        x, y = float(text.get("x")) + start, float(text.get("y"))
        assert 0 <= x and x + long <= 850 + 20 and 10 < y < height, text.text


def test_every_colour_that_is_used_has_a_value_in_both_themes():
    """A name without a value would be drawn black, which a dark page hides."""
    light, dark = (set(re.findall(r"(--[\w-]+): #", part)) for part in pictures.STYLE.split("@media"))
    used = set(re.findall(r"var\((--[\w-]+)\)", pictures.STYLE))
    assert used <= light == dark


def test_what_a_table_of_counts_pays():
    """Of a and b in turn single counts know nothing, ln 2 a character; counts of pairs know nearly everything."""
    single, pairs = pictures.costs_of_counting("ab" * 500, "ab" * 50, 2)
    assert single == pytest.approx(math.log(2), abs=1e-3) and pairs < 0.02
    # seen "aab": single counts leave 2 of 5 parts of the trust to knowing nothing: b costs -ln((1 + 2 * 1/2) / 5)
    [cost] = pictures.costs_of_counting("aab", "b", 1)
    assert cost == pytest.approx(-math.log(2 / 5))


def test_the_lines_of_the_laptops_picture_are_those_of_its_text(drawn):
    """Counted on nine tenths of input.txt, paid on the last tenth, as everywhere in the docs."""
    for label in ("single characters 3.35", "bigrams 2.49", "trigrams 2.04", "four-grams 1.75", "ends at 1.78"):
        assert label in drawn["laptop_curve"]


def test_every_fault_costs_something(drawn):
    """The run as it should be ends lowest, and each of the others is a command that one can type."""
    whole, *faults = read_json(asset("fault_curves.json"))["curves"].items()
    for name, fault in (whole, *faults):
        assert f"{name}: {fault['val']:.2f}" in drawn["faults"] and len(fault["train"]) == 25
        argv = fault["command"].split("train_gpt2.py ")[1].split()
        settings = resolve(argv, "", GPTConfig, TrainConfig, PRESETS, load_model=None)
        assert settings.config.max_steps == 500
    assert all(fault["val"] > whole[1]["val"] + 0.05 for _, fault in faults)
