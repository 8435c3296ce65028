"""Facts about what is normal for the laptop preset."""
import json

from tools import laptop_curve


def test_the_curve_is_made_of_seeds(tmp_path, monkeypatch, capsys):
    """Mean and standard deviation of each step, with the settings that they are for."""
    monkeypatch.setattr(laptop_curve, "val_losses", lambda seed: {0: 4.0 + seed, 10: 2.0})
    laptop_curve.main(["--seeds=3", f"--out={tmp_path / 'curve.json'}"])
    made = json.loads((tmp_path / "curve.json").read_text())
    assert made["val"] == {"0": [6.0, 1.0], "10": [2.0, 0.0]} and made["settings"]["n_layer"] == 4
    assert "step    10 | 2.0000 +- 0.0000" in capsys.readouterr().out
