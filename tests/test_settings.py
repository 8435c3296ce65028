"""Facts about settings: a flag is a line of a dataclass, and what was typed wins over what a checkpoint says."""
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Literal

import pytest
import torch
from small_runs import ROOT, TINY, read_log, refusal

import train_gpt2
from support import processes, settings
from support.console import UserError
from support.settings import check, merge, parse
from train_gpt2 import PRESETS, GPTConfig, TrainConfig


@dataclass(frozen=True)
class Oven:
    """Small enough to see everything at once."""
    # a comment of its own line is not help
    heat: float = 200.0  # in degrees: 100% of "hot"
    minutes: int | None = None  # None: as long as it takes
    fan: bool = True  # move the air
    steam: bool | None = None  # let water in
    rack: Literal["low", "all"] = "low"  # where
    dish: str = "bread"


def resolve(*argv):
    """The settings of a training run -> Settings"""
    return settings.resolve(list(argv), "", GPTConfig, TrainConfig, PRESETS, train_gpt2.load_model)


# --- the command line -----------------------------------------------------------------------------

@pytest.mark.parametrize("argv, typed", [
    ([], {}), (["--heat=50"], {"heat": 50.0}), (["--heat", "50", "--dish", "pie"], {"heat": 50.0, "dish": "pie"}),
    (["--minutes=3"], {"minutes": 3}), (["--dish=a=b"], {"dish": "a=b"}), (["--dish=--x-y"], {"dish": "--x-y"}),
    (["--fan"], {"fan": True}), (["--no-fan"], {"fan": False}), (["--no_fan"], {"fan": False}),
    (["--fan=False"], {"fan": False}), (["--fan=true"], {"fan": True}), (["--steam"], {"steam": True}),
    (["--no-steam"], {"steam": False}), (["--rack"], {"rack": "all"}), (["--rack=low"], {"rack": "low"}),
], ids=" ".join)
def test_only_what_was_typed_comes_out(argv, typed):
    assert parse(argv, "", Oven) == typed


@pytest.mark.parametrize("argv, said", [
    (["--heet=5"], "unrecognized arguments: --heet=5: did you mean --heat?"), (["--xyz"], "arguments: --xyz (--help"),
    (["--heat=hot"], "argument --heat: invalid float value: 'hot'"), (["--minutes=2.5"], "invalid int value: '2.5'"),
    (["--rack=high"], "invalid choice: 'high'"), (["--fan=maybe"], "'maybe' is neither True nor False"),
    (["--dish="], "--dish is empty: is a variable of your shell not set?"), (["pie"], "unrecognized arguments: pie"),
    (["--HEAT=5"], "--HEAT=5: did you mean --heat?"),
    (["--hea=5"], "did you mean --heat?"),  # no abbreviation: the next flag could begin like it
], ids=" ".join)
def test_a_slip_is_one_line_that_says_what_is_wrong(argv, said):
    assert said in refusal(parse, argv, "", Oven)


def test_a_tokenizer_for_shards_names_the_program_that_makes_them():
    """A text file is read with gpt2 or char; any other tokenizer is trained, or fetched, by fineweb.py."""
    line = refusal(resolve, "--preset=laptop", "--tokenizer=bpe:300")
    assert line.endswith("python fineweb.py --files=YOUR_TEXT --tokenizer=bpe:300 --out=shards")


def test_a_dash_is_as_good_as_an_underscore():
    flags = ["--max-steps=3", "--no-hellaswag", "--val_tokens", "64"]
    assert parse(flags, "", TrainConfig, presets=PRESETS) == {"max_steps": 3, "hellaswag": False, "val_tokens": 64}


def test_words_stand_before_between_and_after_flags():
    """Where a command takes words; a value that may be empty is named by its program."""
    for argv in (["a", "b", "--heat=1"], ["--heat", "1", "a", "b"], ["a", "--heat", "1", "b"]):
        assert parse(argv, "", Oven, words=True) == {"heat": 1.0, "words": ["a", "b"]}
    assert parse([], "", Oven, words=True) == {"words": []}
    assert parse(["--dish="], "", Oven, may_be_empty=("dish",)) == {"dish": ""}


def test_a_tilde_is_my_home(monkeypatch):
    """A shell leaves --log_dir=~/log as it is, and a folder named ~ would appear."""
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(["--dish=~/pie", "--rack=low"], "", Oven) == {"dish": "/home/me/pie", "rack": "low"}


def test_of_a_flag_that_is_given_twice_the_last_counts(capsys):
    """A script that adds --B=8 to others' flags may mean it; who did not is told."""
    typed = parse(["--B=4", "--B", "8", "--shard=node", "--shard"], "", TrainConfig, presets=PRESETS)
    assert typed == {"B": 8, "shard": "all"}
    assert capsys.readouterr().out.splitlines() == ["--B is given twice: the last one counts",
                                                    "--shard is given twice: the last one counts"]


def test_help_is_the_comment_at_the_end_of_the_line(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], "How to bake.", Oven)
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and "How to bake." in out
    assert '--heat FLOAT in degrees: 100% of "hot" [200.0]' in out and "--minutes INT None: as long as it takes" in out
    assert "--fan [BOOL] move the air [True; --no-fan]" in out and "--steam [BOOL] let water in [None]" in out
    assert "--dish STR [bread]" in out and "own line" not in out


def test_help_lists_every_flag_with_its_default():
    """--help is the docstring of the file, then each field of both configs with its reason."""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), "--help"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0 and train_gpt2.__doc__.strip().splitlines()[0] in out.stdout
    for cls in (GPTConfig, TrainConfig):
        comments = settings.read_comments(cls)
        for name, field in cls.__dataclass_fields__.items():
            assert comments[name] and f"--{name}" in out.stdout and f"[{field.default}" in out.stdout


# --- which value wins -----------------------------------------------------------------------------

BAKERY = {"gpt2": {}, "pizza": {"heat": 300.0, "rack": "all"}}


def saved(**values):
    """What a checkpoint says."""
    return {"path": "x.pt", "config": {}, "train_config": values}


def test_typed_then_the_checkpoint_then_the_preset_then_the_default():
    pizza = {"preset": "pizza"}
    assert merge(None, {}, BAKERY, Oven)["heat"] == 200
    assert merge(None, pizza, BAKERY, Oven)["heat"] == 300
    assert merge(None, {**pizza, "heat": 9.0}, BAKERY, Oven)["heat"] == 9
    values = merge(saved(heat=250.0, preset="pizza"), {"dish": "pie"}, BAKERY, Oven)
    assert (values["heat"], values["dish"], values["rack"]) == (250, "pie", "low")
    assert merge(saved(heat=250.0), {"heat": 9.0}, BAKERY, Oven)["heat"] == 9


def test_a_typed_preset_counts_as_its_flags_typed():
    """Over a checkpoint of another preset. One of the same preset keeps what it says: it was typed at the start."""
    other = merge(train_saved(preset="gpt2", max_lr=1.0), {"preset": "laptop", "seed": 5}, PRESETS, TrainConfig)
    assert other["max_lr"] == PRESETS["laptop"]["max_lr"] and other["seed"] == 5
    same = merge(train_saved(preset="laptop", max_lr=1.0), {"preset": "laptop"}, PRESETS, TrainConfig)
    assert same["max_lr"] == 1.0


def train_saved(**values):
    return {"path": "x.pt", "config": {"n_layer": 2}, "train_config": {"data_root": "edu_fineweb10B", **values}}


def test_what_changes_is_printed(capsys):
    """The new value beside the old one; other data than this command alone would take; nothing else."""
    merge(saved(heat=250.0, rack="all"), {"heat": 9.0, "rack": "all"}, BAKERY, Oven)
    assert capsys.readouterr().out == "changed since the checkpoint: heat 250.0 -> 9.0\n"
    merge(train_saved(data_root="mine"), {}, PRESETS, TrainConfig)
    assert capsys.readouterr().out == "the data are mine, as x.pt says\n"
    merge(train_saved(data_root="mine"), {"data_root": "other"}, PRESETS, TrainConfig)
    assert capsys.readouterr().out == "changed since the checkpoint: data_root mine -> other\n"
    merge(train_saved(), {}, PRESETS, TrainConfig)
    assert capsys.readouterr().out == ""


def test_another_shape_than_the_weights_is_refused():
    start = {"path": "x.pt", "config": {"n_layer": 2, "dropout": 0.1}}
    assert "of another model: n_layer is 2, not 3" in refusal(merge, start, {"n_layer": 3}, PRESETS, GPTConfig)
    assert merge(start, {"n_layer": 2, "dropout": 0.0}, PRESETS, GPTConfig)["dropout"] == 0.0


def test_what_nobody_typed_is_chosen_later():
    """B is None, and the preset's B the largest to choose; vocab_size is None until the tokenizer is known."""
    chosen = resolve()
    assert (chosen.config.B, chosen.max_B, chosen.gpt_config.vocab_size, chosen.start) == (None, 64, None, None)
    chosen = resolve("--preset=laptop", "--vocab_size=96", "--B=2")
    assert (chosen.config.B, chosen.max_B, chosen.gpt_config.vocab_size) == (2, 2, 96)
    assert chosen.config.tokenizer == "char" and chosen.gpt_config.n_layer == 4


def test_resume_auto_without_a_checkpoint_begins_a_run(checkpoint, tmp_path, capsys):
    """
    So the same command can stand in a script that is started again and again. If log_dir is a slip, the line names the
    directory that was meant.
    """
    chosen = resolve("--resume=auto", f"--log_dir={tmp_path / 'lgo'}/")
    assert chosen.config.resume == "" and chosen.start is None
    out = capsys.readouterr().out
    assert f"{tmp_path / 'lgo'}/: starting a new run with the flags you gave; to continue {checkpoint}: " in out
    resolve("--resume=auto", f"--log_dir={tmp_path / 'gone' / 'lgo'}")
    assert capsys.readouterr().out.endswith("lgo: starting a new run with the flags you gave\n")


def test_resume_takes_the_directory_of_a_run(checkpoint, tmp_path):
    """Its newest checkpoint, and the run goes on there. A directory without one is refused: nothing begins anew."""
    chosen = resolve(f"--resume={tmp_path / 'log'}")
    assert (chosen.config.resume, chosen.config.log_dir) == (checkpoint, str(tmp_path / "log"))
    assert "there is no checkpoint in" in refusal(resolve, f"--resume={tmp_path}")


@pytest.mark.parametrize("slip", ["2", "00002", "model_00002.pt", "LOG/2"])
def test_a_step_or_a_name_stands_for_no_checkpoint(slip, checkpoint, tmp_path):
    """The line has the whole path. For anything else, AUTO or latest, it has auto."""
    log = str(tmp_path / "log")
    line = refusal(resolve, f"--resume={slip.replace('LOG', log)}", f"--log_dir={log}")
    assert line.endswith(f": did you mean --resume={checkpoint}?")
    line = refusal(resolve, "--resume=AUTO", f"--log_dir={log}")
    assert line == f"there is no model AUTO: --resume=auto takes the newest checkpoint in {log}"


def test_resume_auto_with_a_checkpoint_goes_on(train, tmp_path):
    """The checkpoint's B is the largest to choose, its vocabulary stays, and compile is as it was typed."""
    train("log", "--save_every=10")
    chosen = resolve("--resume=auto", f"--log_dir={tmp_path / 'log'}", "--max_steps=20")
    assert chosen.config.resume == chosen.start["path"] == str(tmp_path / "log" / "model_00010.pt")
    assert (chosen.config.B, chosen.max_B, chosen.config.max_steps) == (None, 4, 20)
    assert chosen.gpt_config.vocab_size == 128 and chosen.config.compile is None


def test_init_from_takes_settings_over_and_begins_anew(checkpoint):
    chosen = resolve(f"--init_from={checkpoint}", "--max_steps=1", "--device=cpu")
    assert chosen.config.resume == "" and chosen.config.T == 32 and chosen.start["step"] == 2
    assert "2 steps, and --max_steps=1" in refusal(resolve, f"--resume={checkpoint}", "--max_steps=1")


def test_resume_takes_its_settings_from_the_checkpoint(train, tmp_path, capsys):
    """Flags that are given win, and are named; the rest is as it was. The newest whole checkpoint is used."""
    train("log", "--save_every=5", "--keep_last=5")
    (tmp_path / "log" / "model_00010.pt").write_bytes((tmp_path / "log" / "model_00010.pt").read_bytes()[:10_000])
    capsys.readouterr()
    train_gpt2.run([f"--log_dir={tmp_path / 'log'}", "--resume=auto", "--max_lr=5e-3", "--device=cpu"])
    out = capsys.readouterr().out
    assert "model_00010.pt is not a usable checkpoint" in out and "model_00005.pt: 5 steps are done" in out
    assert "max_lr 0.01 -> 0.005" in out and list(read_log(tmp_path / "log")["train"]) == list(range(10))


def test_another_preset_than_the_checkpoints(train, tmp_path):
    """--preset=gpt2-medium --resume=auto beside a small model's checkpoint must not silently train the small model."""
    train("log", "--save_every=10")
    line = refusal(train_gpt2.run, ["--preset=debug", f"--log_dir={tmp_path / 'log'}", "--resume=auto"])
    assert "of another model: n_embd is 32, not 768" in line


def test_a_file_does_not_decide_where_we_write(train, text, tmp_path, monkeypatch):
    """A checkpoint from elsewhere says --log_dir=~/.ssh: a run that starts from it writes to log/ here all the same."""
    train("first", "--max_steps=1", "--save_every=1")
    saved = torch.load(tmp_path / "first" / "model_00001.pt", weights_only=True)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "settings.json").write_text("dear")
    saved["train_config"] |= {"log_dir": str(tmp_path / "keys"), "resume": "auto", "device": "abacus", "estimate": True}
    torch.save(saved, tmp_path / "stranger.pt")
    monkeypatch.chdir(tmp_path)
    train_gpt2.run([f"--init_from={tmp_path / 'stranger.pt'}", "--device=cpu"])
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["settings.json"]
    assert (tmp_path / "keys" / "settings.json").read_text() == "dear"
    assert (tmp_path / "log" / "log.txt").exists()


def test_a_run_goes_on_where_its_checkpoint_is(train, tmp_path, monkeypatch):
    """--resume=runs/a/model_00005.pt without --log_dir: in runs/a, wherever that has been moved to."""
    train("first", "--max_steps=1", "--save_every=1")
    (tmp_path / "first").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    train_gpt2.run([f"--resume={tmp_path / 'moved' / 'model_00001.pt'}", "--max_steps=2", "--device=cpu"])
    assert list(read_log(tmp_path / "moved")["train"]) == [0, 1] and not (tmp_path / "log").exists()


# --- values that cannot work ----------------------------------------------------------------------

@pytest.mark.parametrize("flag", ["--resume=", "--init_from=", "--data_root="])
def test_an_empty_value_is_a_mistake(flag, refused, tmp_path):
    """--resume=$CHECKPOINT with a variable that is not set began a new run, and moved the old one aside."""
    assert f"{flag[:-1]} is empty: is a variable of your shell not set?" in refused(flag)
    assert not (tmp_path / "log").exists()


LEAST_1 = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "B", "T", "total_batch_size", "val_tokens",
           "keep_last", "dist_timeout_s")
LEAST_0 = ("max_steps", "warmup_steps", "eval_every", "save_every", "seed")


@pytest.mark.parametrize("flag, least", [*((f"--{name}=0", 1) for name in LEAST_1),
                                         *((f"--{name}=-1", 0) for name in LEAST_0),
                                         ("--max_lr=-1.0", 0), ("--min_lr=-1.0", 0), ("--weight_decay=-1.0", 0),
                                         ("--weight_decay=-inf", 0), ("--grad_clip=0.0", 1e-9)])
def test_too_little_is_refused(flag, least):
    assert refusal(resolve, flag) == f"{flag}: must be at least {least}"


@pytest.mark.parametrize("flag", ["--max_lr=nan", "--weight_decay=inf"])
def test_a_rate_is_a_finite_number(flag):
    assert refusal(resolve, flag) == f"{flag}: must be a finite number"


@pytest.mark.parametrize("flag", ["--beta1=1.0", "--beta2=1.0", "--dropout=1.0", "--dropout=-0.1", "--beta1=nan"])
def test_a_share_is_below_1(flag):
    assert refusal(resolve, flag) == f"{flag}: must be at least 0 and below 1"


@pytest.mark.parametrize("flags, said", [
    ("--seed=8589934593", "--seed=8589934593: must be at most 8589934592"),
    ("--n_head=7", "n_embd 768 is not divisible by n_head 7"),
    ("--T=2048", "T 2048 is longer than block_size 1024: try --T=1024, or --block_size=2048"),
    ("--val_tokens=10", "val_tokens 10 is less than one row of T 1024: try --val_tokens=1024"),
    ("--max_lr=1e-5", "min_lr 6e-05 is above max_lr 1e-05: try --min_lr=1e-06"),
    ("--offload", "--offload moves the shares that --shard makes: give --shard too"),
    ("--compile --shard", "--compile and --shard do not go together"),
])
def test_values_that_do_not_go_together(flags, said):
    assert said in refusal(resolve, *flags.split())


def test_a_warm_up_longer_than_the_run_is_a_warning(capsys):
    check(GPTConfig(), TrainConfig(max_steps=10))
    assert "warning: the warm-up takes 715 steps, the run 10" in capsys.readouterr().out
    check(GPTConfig(), TrainConfig(max_steps=0))  # which only evaluates
    assert capsys.readouterr().out == ""


# --- every flag that may be given with --resume ---------------------------------------------------

class Seen(Exception):
    """Raised by what stands in for a function that cannot run here: it has been called with the new value."""


def seen(*args):
    raise Seen(args)


def differs(log, plain, **_):
    """Other weights after the two steps: what they sent to the log is not what it was."""
    return log["train"][5] != plain["train"][5] or log["norm"][5] != plain["norm"][5]


# flag: what shows that it is in force. The flags that move a place or refuse to are tested by name below
EFFECTS = {
    "--max_lr=0.03": differs, "--min_lr=0.009": differs, "--warmup_steps=5": differs, "--weight_decay=20": differs,
    "--beta1=0.1": differs, "--beta2=0.1": differs, "--grad_clip=1e-6": differs, "--seed=7": differs,
    "--total_batch_size=512": differs, "--T=16": differs, "--dropout=0.4": differs,
    "--dtype=bfloat16": lambda out, **_: "cpu, bfloat16 (as asked for)" in out,
    "--B=2": lambda out, **_: "256 tokens a step = B 2 * T 32" in out,
    "--max_steps=7": lambda log, **_: max(log["train"]) == 6,
    "--eval_every=5": lambda log, **_: list(log["val"]) == [5, 6],
    "--val_tokens=320": lambda log, plain, **_: log["val"][6] != plain["val"][6],
    "--save_every=1": lambda files, **_: "model_00005.pt" in files,
    "--keep_last=1": lambda files, **_: sum(name.endswith(".pt") for name in files) == 1,
    "--tensorboard": lambda files, **_: any(name.startswith("events.") for name in files),
    "--compile": lambda out, **_: "going on without torch.compile" in out,
    "--hellaswag": lambda out, **_: "HellaSwag" in out,
    "--init_from=gpt2": lambda out, **_: "resuming from" in out,  # for a first start: a checkpoint wins over it
    "--estimate": lambda out, **_: "GPU(s)" in out,
    "--device=mps": lambda error, **_: "is not available here" in error,
    "--preset=debug": lambda error, **_: "of another model" in error,
    "--tokenizer=gpt2": lambda error, **_: "vocabulary" in error,
    "--data_root=other.txt": lambda error, **_: "the data have changed" in error,
    "--shard=all": lambda error, **_: "'all'" in error,
    "--offload": lambda error, **_: "give --shard too" in error,
    "--activation_checkpointing": lambda error, **_: error == "recomputed",
    "--dist_timeout_s=77": lambda error, **_: error.endswith("77)"),
    "--log_dir=elsewhere": lambda files, **_: files == [],
    "--resume=log/model_00004.pt": lambda out, **_: "4 steps are done" in out,
}


def test_every_flag_is_in_the_list():
    names = {f.name for f in fields(TrainConfig)} | {"dropout"}
    assert {flag.removeprefix("--").split("=")[0] for flag in EFFECTS} == names


@pytest.mark.parametrize("flag", EFFECTS)
def test_a_flag_that_is_given_with_resume_is_in_force(flag, tmp_path, text, monkeypatch, capsys):
    """Or it is refused. None is announced and then forgotten: the optimizer's groups once came back from the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("x" * 100 + text.read_text()[100:])
    first = [*TINY, "--data_root=text.txt", "--log_dir=log", "--dropout=0.1", "--max_steps=4", "--save_every=4"]
    again = ["--resume=auto", "--max_steps=6", "--device=cpu", "--log_dir=log"]
    train_gpt2.run(first)
    shutil.copytree("log", "plain")
    train_gpt2.run([*again, "--log_dir=plain"])
    monkeypatch.setattr(torch, "compile", seen)
    monkeypatch.setattr(train_gpt2, "shard_model", seen)
    monkeypatch.setattr(processes, "meet", seen if "dist" in flag else lambda *args: None)
    if "dist" in flag:
        for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="x", MASTER_PORT=1).items():
            monkeypatch.setenv(name, str(value))
    if "activation" in flag:
        monkeypatch.setattr(train_gpt2, "recompute", lambda *args, **kwargs: seen("recomputed"))
    capsys.readouterr()
    error = ""
    try:
        train_gpt2.run([*again, flag])
    except Seen as e:
        [args] = e.args
        error = "recomputed" if args == ("recomputed",) else str(args)
    except UserError as e:
        error = str(e)
    except SystemExit as e:  # after --estimate
        assert not e.code
    log = read_log(tmp_path / "log")
    files = sorted(os.listdir("log")) if max(log["train"]) > 3 else []
    assert EFFECTS[flag](log=log, plain=read_log(tmp_path / "plain"), out=capsys.readouterr().out, error=error,
                         files=files)


def test_a_word_that_begins_with_a_dash():
    """After a bare -- nothing is a flag: a prompt may be "--verily" or "-5 degrees"."""
    argv = ["sample", "--seed=3", "--", "--verily", "-5 degrees"]
    assert parse(argv, "", TrainConfig, words=True) == {"seed": 3, "words": ["sample", "--verily", "-5 degrees"]}
    assert parse(["sample"], "", TrainConfig, words=True) == {"words": ["sample"]}
    assert "unrecognized arguments: --verily" in refusal(lambda: parse(["--verily"], "", TrainConfig, words=True))
