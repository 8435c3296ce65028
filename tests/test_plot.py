"""Facts about plot.py: which runs it reads, what a legend calls them, which files it writes."""
import json
import os
import struct
import subprocess
import sys

import pytest
from small_runs import ROOT, refusal

import plot


def size(png):
    """Width and height of a picture, which stand at its beginning."""
    return struct.unpack(">II", png.read_bytes()[16:24])


@pytest.mark.parametrize("flags", [(), ("--reference",), ("--reference", "--tokens")], ids=" ".join)
def test_plot(flags, tmp_path, capsys):
    """Two runs, one of them unfinished and resumed; with HellaSwag or the public runs there are two panels."""
    pytest.importorskip("matplotlib")
    for name, steps in (("a", 30), ("b", 4)):
        (tmp_path / name).mkdir()
        train = "".join(f"{i} train {9 - i / 9}\n" for i in range(steps))
        (tmp_path / name / "log.txt").write_text(train + "0 val 9.1\n0 hella 0.25\n")
    plot.main([*flags, str(tmp_path / "a"), str(tmp_path / "b" / "log.txt"), f"--out={tmp_path / 'p.png'}"])
    assert size(tmp_path / "p.png") == (850, 400) and "wrote" in capsys.readouterr().out


@pytest.fixture
def plot_log(tmp_path):
    """plot_log("a", "settings") makes a log directory of that name -> its path."""
    def make(name, settings=""):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("0 train 4.5\n1 train 4.4\n1 val 4.4\n1 hella 0.26\n")
        if settings:
            (folder / "settings.json").write_text(settings)
        return str(folder)
    return make


@pytest.mark.parametrize("specs", [[{"name": "char", "chars": "ab"}, {"name": "bpe", "json": "1"}],
                                   [{"name": "char", "chars": "ab"}, {"name": "char", "chars": "abc"}]])
def test_different_tokenizers_are_compared_in_bits_per_byte(specs, plot_log, tmp_path):
    """A loss per character beside one per token would say that characters are easier."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    paths = [plot_log(spec["name"] + other, json.dumps({"tokenizer": spec}))
             for other, spec in zip("ab", specs, strict=True)]
    for path, bpb in zip(paths, (2.5, 2.25), strict=True):
        with open(os.path.join(path, "log.txt"), "a") as f:
            f.write(f"1 bpb {bpb}\n")
    plot.main([*paths, f"--out={tmp_path / 'p.png'}"])
    ax = pyplot.gcf().axes[0]
    assert ax.get_title() == "loss (bits per byte)"
    assert sorted(line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 1) == [2.25, 2.5]
    plot.main([paths[0], f"--out={tmp_path / 'p.png'}"])
    assert pyplot.gcf().axes[0].get_title() == "loss (nats per character)"


def test_losses_per_token_of_different_tokenizers_do_not_compare(plot_log):
    """An old log has no bits per byte: the title says it, and OpenAI's loss, in GPT-2's tokens, is not drawn."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    runs = plot.read_runs([plot_log("a"), plot_log("b", json.dumps({"tokenizer": {"name": "char", "chars": "ab"}}))])
    for drawn, comparable in ((runs[:1], True), (runs, False)):
        ax = plot.draw(drawn, reference=False, tokens=False).axes[0]
        assert ("not comparable" not in ax.get_title()) == comparable
        assert ("OpenAI's GPT-2 124M" in [line.get_label() for line in ax.lines]) == comparable
    pyplot.close("all")


def test_a_run_of_one_step_can_be_seen(plot_log):
    """A line needs two points; a single one is a dot."""
    pytest.importorskip("matplotlib")
    path = plot_log("a")
    with open(os.path.join(path, "log.txt"), "w") as f:
        f.write("0 train 4.5\n")
    [ax] = plot.draw(plot.read_runs([path]), reference=False, tokens=False).axes
    assert [line.get_marker() for line in ax.lines] == ["o"]


@pytest.mark.parametrize("name, shown", [("a$b_{$c", "a$b_{$c"), ("_a", " _a")])
def test_any_name_can_stand_in_a_legend(name, shown, plot_log, tmp_path):
    """A formula that does not end, an underscore (matplotlib would leave the run out)."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    plot.main([plot_log(name), f"--out={tmp_path / 'p.png'}"])
    [legend, _] = [ax.get_legend() for ax in pyplot.gcf().axes]
    assert [text.get_text() for text in legend.get_texts()] [:2] == [f"{shown}, train", f"{shown}, validation"]


def test_two_runs_of_one_name_are_told_apart(plot_log):
    """a/log and b/log: two lines called "log" would say nothing."""
    paths = [plot_log("a/log"), plot_log("b/log"), plot_log("c/other")]
    assert [run.name for run in plot.read_runs(paths)] == [paths[0], paths[1], "other"]


def test_a_diverged_run_is_drawn(plot_log, tmp_path):
    """Losses up to the largest float32 have a place; nan and infinity have none, and are left out."""
    pytest.importorskip("matplotlib")
    path = plot_log("a")
    with open(os.path.join(path, "log.txt"), "a") as f:
        f.write("2 train 1e29\n3 train 3.4e38\n4 train inf\n5 train nan\n5 val nan\n")
    plot.main([path, f"--out={tmp_path / 'p.png'}"])
    assert size(tmp_path / "p.png") == (850, 400)


def test_the_laptops_run_stands_in_the_band_of_ten_seeds(plot_log):
    """The same settings, whatever the seed: a gray band. Another learning rate, or another text: none."""
    pytest.importorskip("matplotlib")
    with open(os.path.join(ROOT, "assets", "laptop_curve.json")) as f:
        settings = json.load(f)["settings"]
    for name, changed, tokens, bands in (("a", {"seed": 5}, 1_003_854, 1), ("b", {"max_lr": 1e-3}, 1_003_854, 0),
                                         ("c", {}, 20_000, 0)):
        path = plot_log(name, json.dumps({"train_config": {**settings, **changed}, "stream": {"tokens": tokens}}))
        [ax, *_] = plot.draw(plot.read_runs([path]), reference=False, tokens=False).axes
        assert [band.get_label() for band in ax.collections] == ["validation, ten seeds"] * bands


def test_no_environment_changes_how_we_draw(plot_log, tmp_path):
    """A backend that is not there, TeX for all texts, a name the font has no characters for: a picture, and no word."""
    pytest.importorskip("matplotlib")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    environment = {**os.environ, "MPLBACKEND": "foo", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    command = [sys.executable, os.path.join(ROOT, "plot.py"), plot_log("𓀀"), f"--out={tmp_path / 'p.png'}"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "") and size(tmp_path / "p.png") == (850, 400)


def test_tokens_are_steps_times_the_batch(plot_log):
    """The batch is in settings.json. A fine-tuned run has none, nor has the original program: 2**19 a step, then."""
    paths = [plot_log("a", '{"train_config": {"total_batch_size": 512}}'), plot_log("b", '{"train_config": {}}'),
             plot_log("c")]
    assert [run.tokens_a_step for run in plot.read_runs(paths)] == [512, 2**19, 2**19]


@pytest.mark.parametrize("settings", ["{", "{}"])
def test_settings_that_do_not_name_a_tokenizer(settings, plot_log, tmp_path):
    """The original program, always with GPT-2's, wrote no settings: what has some is of a run we know nothing of."""
    assert [run.tokenizer for run in plot.read_runs([plot_log("original")])] == [{"name": "gpt2"}]
    line = refusal(plot.main, [plot_log("a", settings), "--reference", f"--out={tmp_path / 'p.png'}"])
    assert f"the tokenizer of {tmp_path / 'a'} is unknown, not gpt2" in line and not (tmp_path / "p.png").exists()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_only_a_picture_of_ours_is_replaced(suffix, plot_log, tmp_path):
    pytest.importorskip("matplotlib")
    log, ours, mine = plot_log("a"), tmp_path / f"ours.{suffix}", tmp_path / f"mine.{suffix}"
    mine.write_text("a photo")
    for _ in range(2):
        plot.main([log, f"--out={ours}"])
    line = refusal(plot.main, [log, f"--out={mine}"])
    assert "is there already, and not written by this program" in line and mine.read_text() == "a photo"


@pytest.mark.parametrize("argv, said", [
    ([], "python plot.py log"),
    (["gone"], "there is no log"),
    (["MODEL"], "has no lines `step stream value`"),
    (["LOG", "--out=log.txt"], "must end in .png, .svg or .pdf"),
    (["LOG", "--out=gone/log.png"], "cannot write gone/log.png"),
    (["LOG", "--reference"], "is char, not gpt2: leave --reference out"),
    (["LOG", "--refrence"], "did you mean --reference?"),
], ids=lambda v: " ".join(v[:3]) if isinstance(v, list) else "")
def test_wrong_input(argv, said, checkpoint):
    there = {"MODEL": checkpoint, "LOG": os.path.dirname(checkpoint)}
    assert said in refusal(plot.main, [there.get(a, a) for a in argv])


def test_help_needs_no_matplotlib():
    """It is imported for a picture only, so --help and errors come at once."""
    code = "import sys, plot; print({'transformers', 'matplotlib', 'datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"
