"""
Facts about exercises/find_the_fault.py: each fault still fits today's train_gpt2.py, the band is there, and answers are
graded. (The faults are in exercises/faults.py: play first.)
"""
import importlib
import json
import os
import re

import pytest
import torch
from small_runs import ROOT, refusal


@pytest.fixture
def game(monkeypatch):
    """The program, imported."""
    monkeypatch.syspath_prepend(os.path.join(ROOT, "exercises"))
    return importlib.import_module("find_the_fault")


def source():
    with open(os.path.join(ROOT, "train_gpt2.py"), encoding="utf-8") as f:
        return f.read()


def a_run(game, tmp_path, monkeypatch):
    """A folder with a run that nobody trained: flat losses -> the arguments that play it."""
    def train(fault, folder):
        os.makedirs(os.path.join(folder, "log"))
        with open(os.path.join(folder, "log", "log.txt"), "w") as f:
            for step in range(301):
                norm = 161.6 if step == 37 else 1.0
                f.write(f"{step} val 2.5000\n" if step % 100 == 0 else "")
                f.write(f"{step} train 2.5\n{step} lr 1e-3\n{step} norm {norm}\n" if step < 300 else "")
        torch.save({"model": {"transformer.wpe.weight": torch.full((64, 4), 0.5)}},
                   os.path.join(folder, "log", "model_00300.pt"))
        with open(os.path.join(folder, "printed.txt"), "w") as f:
            f.write("step     0 | loss: 4.8\nstep     5 | loss: 4.7\nsample 0: To be\nor not\nsample 1: no\n")
    monkeypatch.setattr(game, "train", train)
    return [f"--folder={tmp_path}", "--seed=5"]


def test_each_fault_fits_todays_code(game):
    """Each piece that is replaced is there exactly once, and what comes out is Python."""
    text = source()
    for fault in game.FAULTS:
        planted = game.plant(fault, text)
        compile(planted, fault.name, "exec")
        assert (planted == text) == (fault.name == "nothing")
    assert len(game.FAULTS) >= 16 and len({fault.name for fault in game.FAULTS}) == len(game.FAULTS)


def test_a_fault_that_no_longer_fits_is_an_error(game):
    """Not a game with nothing to find."""
    with pytest.raises(AssertionError, match="is in train_gpt2.py 0 times"):
        game.plant(game.FAULTS[1], source().replace("grad_accum_steps", "k"))


def test_each_fault_says_what_gives_it_away_and_each_seed_plants_one(game):
    """Whoever plays all seeds in a row meets no fault twice before all have come."""
    assert all(fault.gives_away and fault.what for fault in game.FAULTS)
    n = len(game.FAULTS)
    for first in (0, n):
        assert {game.choose(first + i).name for i in range(n)} == {fault.name for fault in game.FAULTS}


def test_the_readme_has_what_each_fault_was_measured_to_do(game):
    """A row for each, with the names that --answer takes."""
    with open(os.path.join(ROOT, "exercises", "README.md"), encoding="utf-8") as f:
        section = f.read().split("## Find the fault")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\w+) \| [\d.]+ \|", section, re.MULTILINE) == [fault.name for fault in game.FAULTS]


def test_a_run_is_shown_beside_the_band_and_never_its_fault(game, tmp_path, monkeypatch, capsys):
    """The losses, the sample and the list."""
    play = a_run(game, tmp_path, monkeypatch)
    game.main(play)
    said = capsys.readouterr().out
    assert "step     0 | loss: 4.8" in said and "step     5" not in said and "To be\nor not" in said
    assert "OUTSIDE" in said and all(f"  {fault.name} " in said for fault in game.FAULTS)
    assert re.search(r"^     0         val   2.500 .* 4\.\d+ \+- .* OUTSIDE$", said, re.MULTILINE)  # an untrained loss


def test_the_largest_norm_of_each_five_steps_is_shown_beside_a_sound_run(game, tmp_path, monkeypatch, capsys):
    """A spike at step 37 is seen, although it is no fifth step. A bar that would be longer ends in >."""
    play = a_run(game, tmp_path, monkeypatch)
    game.main(play)
    game.main([*play, "--show=norm"])
    said = capsys.readouterr().out
    assert re.search(r"^ 35- 39  lr 1.00e-03  loss 2.5000  norm 161.600 \([\d.]+\) #{60}>$", said, re.MULTILINE)
    assert re.search(r"^295-299  lr 1.00e-03  loss 2.5000  norm   1.000 \(0\.\d+\) #{20}$", said, re.MULTILINE)


def test_weights_are_shown_beside_a_sound_run(game, tmp_path, monkeypatch, capsys):
    """Nobody knows by heart which std a parameter has."""
    play = a_run(game, tmp_path, monkeypatch)
    game.main(play)
    game.main([*play, "--show=weights"])
    said = capsys.readouterr().out
    mean, std = game.read_json(game.SOUND)["weights"]["transformer.wpe.weight"]
    assert re.search(rf"wpe.weight +mean   0.5000 \( *{mean:.4f}\)   std 0.0000 \({std:.4f}\)", said)
    assert "here   1.00 1.00 1.00" in said and said.count("sound  ") == 4


def test_a_sound_run_is_recorded_with_five_other_seeds(game, tmp_path, monkeypatch):
    """For whoever has changed train_gpt2.py: what the game shows beside a run."""
    recorded = set(game.read_json(game.SOUND))
    monkeypatch.setattr(game, "SOUND", str(tmp_path / "sound_run.json"))
    seeds = []
    a_run(game, tmp_path, monkeypatch)
    fake = game.train
    monkeypatch.setattr(game, "train", lambda fault, folder, seed: (seeds.append(seed), fake(fault, folder)))
    game.main([f"--folder={tmp_path}", "--record"])
    sound = game.read_json(game.SOUND)
    assert seeds == [f"--seed={seed}" for seed in (1337, 1, 2, 3, 4, 5)] and set(sound) == recorded
    assert sound["five_seeds"]["100"]["val"] == [2.5, 0.0] and sound["losses"]["0"]["norm"] == 1.0
    assert sound["norms"][7] == 161.6 and sound["weights"] == {"transformer.wpe.weight": [0.5, 0.0]}


def test_the_recorded_sound_run_is_in_the_band(game, capsys):
    """Or the game would call it a fault."""
    game.show_band(game.read_json(game.SOUND)["losses"])
    said = capsys.readouterr().out
    assert said.count("in the band") == 12


def test_the_first_answer_counts(game, tmp_path, monkeypatch, capsys):
    """Whoever knows the answer can repeat it, but not improve the score."""
    play = a_run(game, tmp_path, monkeypatch)
    game.main(play)
    right = game.choose(5).name
    wrong = next(fault.name for fault in game.FAULTS if fault.name != right)
    for answer, line in ((wrong, f"no. It was {right}: "), (right, "yes: ")):
        game.main([*play, f"--answer={answer}"])
        said = capsys.readouterr().out
        assert line in said and game.choose(5).gives_away in said and "score: 0 of 1" in said
    assert json.loads((tmp_path / "score.json").read_text()) == {"5": {"fault": right, "answer": wrong}}


def test_the_answer_shows_the_changed_lines_whole(game, tmp_path, capsys):
    """A diff, as git would show it."""
    seed = next(seed for seed in range(1000) if game.choose(seed).name == "unmasked")
    game.grade(seed, "unmasked", tmp_path / "score.json")
    said = capsys.readouterr().out
    for sign, causal in (("-", "True"), (r"\+", "False")):
        assert re.search(rf"^  {sign}    return F\.scaled_dot.*is_causal={causal}\)$", said, re.MULTILINE)
    assert "score: 1 of 1" in said


def test_an_answer_needs_a_run(game, tmp_path):
    """Guessing from the list alone is not the game."""
    assert "no run of seed 3 yet" in refusal(game.main, [f"--folder={tmp_path}", "--seed=3", "--answer=nothing"])


@pytest.mark.slow
def test_a_fault_is_trained_in_a_copy(game, tmp_path, capsys):
    """A whole game; train_gpt2.py stays as it is."""
    before = source()
    seed = next(seed for seed in range(1000) if game.choose(seed).name == "undivided")
    game.main([f"--folder={tmp_path}", f"--seed={seed}"])
    assert "OUTSIDE" in capsys.readouterr().out  # the norm
    game.main([f"--folder={tmp_path}", f"--seed={seed}", "--show=weights"])
    assert "transformer.h.3.mlp.c_fc.weight" in capsys.readouterr().out
    assert source() == before
