"""Facts about what is normal: public runs beside ours, numbers that are none, gradients far above their range."""
from dataclasses import replace

import torch

import train_gpt2
from support import files, health
from support.health import compare_to_reference, read_reference


def test_the_reference_curves():
    """The public runs of docs/curves.md end where it says; this is what --reference draws."""
    columns = read_reference()
    assert columns["step"][-1] == 19072 and (columns["val_a"][-1], columns["val_b"][-1]) == (3.0663, 3.0717)
    assert (columns["hella_a"][-1], columns["hella_b"][-1]) == (0.3058, 0.3074) and len(columns["step"]) == 78


def test_the_reference_run_stands_beside_the_validation_loss(tmp_path):
    """Only for its own recipe and data: a smaller batch, another tokenizer or another corpus has another curve."""
    gpt_config, config = train_gpt2.GPTConfig(), train_gpt2.TrainConfig(data_root=str(tmp_path / "edu_fineweb10B"))
    assert compare_to_reference(250, 6.19, gpt_config, config) == " | reference 6.1728 +- 0.05: in the band"
    assert "OUTSIDE" in compare_to_reference(1000, 4.88, gpt_config, config)  # a late sync flag
    assert not compare_to_reference(251, 6.17, gpt_config, config)
    for change in (dict(total_batch_size=262144), dict(max_lr=1e-3), dict(data_root=str(tmp_path / "mine"))):
        assert not compare_to_reference(250, 6.17, gpt_config, replace(config, **change))
    assert not compare_to_reference(250, 6.17, replace(gpt_config, n_layer=6), config)


def test_a_loss_that_is_not_finite_ends_the_run(train, refused):
    """Step, place in the data and an earlier checkpoint in one line, before nan is saved or a night is wasted."""
    train("log", "--save_every=5", "--max_steps=5")
    err = refused("--resume=auto", "--max_steps=20", "--max_lr=1e30", "--min_lr=1e30", "--save_every=20")
    assert "nan" in err or "inf" in err
    assert "256 tokens from" in err and "offset" in err
    assert "model_00005.pt with a smaller --max_lr" in err


def test_weights_that_gave_a_nan_are_not_gone_back_to(train, refused, tmp_path):
    """They were saved at the top of the step that failed: going on from them would fail again."""
    line = refused("--max_steps=9", "--max_lr=1e30", "--min_lr=1e30", "--save_every=1")
    saved = sorted(path.name for path in (tmp_path / "log").glob("model_*.pt"))
    assert saved == ["model_00001.pt"] and "step 1: loss nan" in line and "try a new run with a smaller" in line


def test_a_gradient_far_above_its_recent_range_is_reported(train, monkeypatch, capsys):
    """A hundred steps are its range: four times above the largest of them is worth a line, no more."""
    real = torch.nn.utils.clip_grad_norm_
    norms = iter([1.0, 2.0, 3.0] * 40)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_",
                        lambda *args: real(*args) * 0 + (50.0 if (n := next(norms, None)) is None else n))
    train("log", "--max_steps=122", "--total_batch_size=128")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: step 120: norm 50.00, 1.00 to 3.00 before"]


def test_a_run_does_not_end_over_a_missing_curve(monkeypatch, tmp_path):
    """Without assets/ there is nothing to compare with, and training goes on."""
    monkeypatch.setattr(files, "ASSETS", str(tmp_path))
    assert health.compare_to_reference(250, 6.19, train_gpt2.GPTConfig(), train_gpt2.TrainConfig()) == ""
