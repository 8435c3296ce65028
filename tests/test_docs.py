"""Facts about README.md and docs/: what they tell one to type works, what they print is printed, links lead on."""
import csv
import functools
import glob
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from pages import CHINESE, COMING, ENGLISH, FENCE, LINK, anchors, find_pages, prose, resolve
from small_runs import ROOT

import finetune
import fineweb
import hellaswag
import look
import play
import plot
import train_gpt2
from support import settings
from support.arithmetic import PEAKS, count_parameters, flops_per_token, peak

# (language, or "" for commands; contents)
FENCES = [fence for text in ENGLISH.values() for fence in FENCE.findall(text)]

# --- the table of commands ------------------------------------------------------------------------

# a run on the CPU that takes no time, whatever the command asks for
TINY = ("--device=cpu --dtype=float32 --no-compile --n_layer=1 --n_head=1 --n_embd=4 --block_size=32 --T=32 --B=2 "
        "--total_batch_size=64 --max_steps=1 --warmup_steps=0 --eval_every=0 --val_tokens=64 --no-hellaswag")
START = "--device=cpu --dtype=float32 --val_tokens=64"  # the same where a checkpoint says how large the model is
LAPTOP = "--device=cpu --max_steps=2 --eval_every=0 --val_tokens=2000"

# How a command is made short, by the beginning of its line. The longest beginning that fits decides.
SHORT = {
    "python train_gpt2.py": TINY,
    "python train_gpt2.py --preset=laptop": LAPTOP,
    "python train_gpt2.py --preset=laptop --max_steps=1200": TINY,
    "python train_gpt2.py --preset=gpt2-xl --shard --activation_checkpointing --estimate": "",
    "python train_gpt2.py --resume": f"{START} --max_steps=2",
    "python train_gpt2.py --init_from=log": START,
    "python train_gpt2.py --data_root=input.txt": f"{TINY} --log_dir=other",
    "python train_gpt2.py --init_from=standin": f"{START} --T=32 --total_batch_size=128 --max_steps=1 --warmup_steps=0 "
                                                "--log_dir=other",
    "python fineweb.py": "",
    "python fineweb.py --files=book.txt": "--tokenizer=bpe:300 --out=bpe",
    "python hellaswag.py": "--device=cpu",
    "python play.py": "",
    "python play.py sample": "--max_new_tokens=4 --device=cpu",
    "python play.py chat": "--max_new_tokens=4 --device=cpu",
    "python plot.py": "",
    "python look.py": "--device=cpu",
    "python finetune.py": "--device=cpu --epochs=1 --batch=2",
    "python finetune.py predict": "--device=cpu",
    "python finetune.py search": "--device=cpu",
}
# What is not run here, by the beginning of its line. Its flags are checked all the same.
NOT_RUN = {
    "python fineweb.py --max_shards": "needs the network",
    "python fineweb.py --name": "needs the network",
    "HF_ENDPOINT": "needs the network",
    "python train_gpt2.py --init_from=gpt2": "needs the network; the stand-in's line is run",
    "python finetune.py classify --model=gpt2": "needs the network; those with MODEL are run",
    "python finetune.py classify --demo": "takes a minute; test_finetune.py runs it on some of the speeches",
    "python hellaswag.py --model=gpt2": "needs the network",
    "torchrun": "needs several GPUs; test_two_processes_as_the_page_says runs the one for a laptop",
    "python tools/": "measures, or takes long; each has a test of its own",
    "OMP_NUM_THREADS=1 python tools/": "trains for minutes; test_compare.py has runs without training",
    "python -m pytest": "is what you are running",
}
NEEDS_THE_NETWORK = "python fineweb.py"  # and nothing after it


def commands():
    """All that the pages tell one to type: lines of fences and in sentences, without comments -> list"""
    lines = []
    for page in ENGLISH.values():
        for language, text in FENCE.findall(page):
            if language == "":
                lines += text.replace("\\\n", " ").splitlines()
        lines += re.findall(r"`((?:python|torchrun) [^`]+)`", " ".join(prose(page).split()))
    lines = [" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines]
    ours = re.compile(r"([A-Z_]+=\S+ )?(python|torchrun) ")  # and not pip, git or a program of others
    return list(dict.fromkeys(line for line in lines if ours.match(line) and not line.endswith("--help")))


def longest_beginning(command, table):
    """Which entry of SHORT or NOT_RUN is about a command -> its key, None if there is none"""
    return max((key for key in table if command.startswith(key)), key=len, default=None)


def is_run(command):
    return longest_beginning(command, NOT_RUN) is None and command != NEEDS_THE_NETWORK


def test_no_line_of_the_tables_is_left_over():
    """Each is about a command that a page has: what a page loses goes from here, too."""
    used = {longest_beginning(c, NOT_RUN) for c in commands()} | {longest_beginning(c, SHORT) for c in commands()}
    assert {*SHORT, *NOT_RUN} - used == set()


def torchruns_flags():
    from torch.distributed.run import get_args_parser
    return set(get_args_parser()._option_string_actions)


def parse(words):
    """Give a command's flags to the program's own parser, which refuses one that it does not know."""
    program, *argv = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if program == "torchrun":
        from torch.distributed.run import parse_args
        args = parse_args(argv)
        return parse(["python", args.training_script, *args.training_script_args])
    script, *argv = argv
    if script == "-m":
        return
    assert os.path.isfile(os.path.join(ROOT, script)) or script in COMING, f"there is no {script}"
    if script == "train_gpt2.py":
        classes = train_gpt2.GPTConfig, train_gpt2.TrainConfig
        typed = settings.parse(argv, "", *classes, presets=train_gpt2.PRESETS)
        values = settings.merge(None, typed, train_gpt2.PRESETS, *classes)
        settings.check(*(cls(**settings.pick(cls, values)) for cls in classes))
    elif script == "fineweb.py":
        settings.parse(argv, "", fineweb.ShardConfig)
    elif script == "finetune.py":
        config = {"predict": finetune.PredictConfig, "search": finetune.SearchConfig}.get(argv[0], finetune.TuneConfig)
        settings.parse([word for word in argv if word.startswith("--")], "", config)
    elif script == "play.py":
        play.parse_args(argv)
    elif script == "plot.py":
        settings.parse(argv, "", plot.PlotConfig, words=True)
    elif script == "look.py":
        look.parse_args(argv)
    elif script == "hellaswag.py":
        settings.parse(argv, "", hellaswag.Config)


def slurms_command():
    """The line of the Slurm script that srun starts, with numbers in place of its variables."""
    [script] = [text for language, text in FENCES if language == "bash"]
    line = script.replace("\\\n", " ").split("srun ")[1]
    return " ".join(re.sub(r"\$(\w+)", "2", line).split())


@pytest.mark.parametrize("command", [*commands(), slurms_command()])
def test_every_flag_exists(command):
    for flag in ("--shutdown-timeout", "--signals-to-handle"):
        if flag in command and flag not in torchruns_flags():
            pytest.skip(f"the page says what to do with a torchrun that has no {flag}")
    parse(shlex.split(command))


def test_flags_in_sentences_exist():
    """`--B`, `--val_tokens=100000` and the like: some program has that flag."""
    known = {f"--{name}" for cls in (train_gpt2.GPTConfig, train_gpt2.TrainConfig, fineweb.ShardConfig,
                                     finetune.TuneConfig, finetune.SearchConfig, hellaswag.Config, play.PlayConfig,
                                     plot.PlotConfig, look.LookConfig)
             for name in cls.__dataclass_fields__}
    known |= {"--no-" + flag[2:] for flag in known}
    for path in glob.glob("tools/*.py", root_dir=ROOT):
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            known |= set(re.findall(r"--[a-z_]+", f.read()))
    # torchrun's, of which an older one lacks two; Slurm's
    known |= {*torchruns_flags(), "--shutdown-timeout", "--signals-to-handle", "--signal", "--help"}
    for page, text in ENGLISH.items():
        assert set(re.findall(r"(?<=`)--[\w-]+", prose(text))) - known == set(), page


# --- run for real ---------------------------------------------------------------------------------

# what the files of docs/finetuning.md hold
TUNING = {
    "train": [{"text": "good" if i % 2 else "bad", "premise": "it rains", "hypothesis": "it is wet", "label": i % 2}
              for i in range(20)],
    "val": [{"text": "good", "premise": "it rains", "hypothesis": "it is dry", "label": 1}],
    "texts": [{"text": "fair"}],
    "pairs": [{"query": f"who is {i}?", "passage": f"this is {i}"} for i in range(20)],
    "passages": [{"passage": f"this is {i}"} for i in range(20)],
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory like the one that a reader has who has done all that the pages say, with very small models."""
    folder = tmp_path_factory.mktemp("docs")
    os.symlink(os.path.join(ROOT, "input.txt"), folder / "input.txt")
    with open(folder / "input.txt", encoding="utf-8") as f:
        text = f.read(30_000)
    (folder / "book.txt").write_text(text)
    (folder / "chinese_classic.txt").write_text("话说天下大势，分久必合，合久必分。" * 200, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in text.split("\n\n")))
    item = {"ctx": "To be, or", "label": 1, "endings": ["six", "not to be", "seven", "eight"]}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")
    before = os.getcwd()
    os.chdir(folder)
    try:
        for flags in ("--files=book.txt", "--files=data/*.jsonl --out=shards",
                      "--files=chinese_classic.txt --tokenizer=char --out=zh_char"):
            fineweb.main(flags.split())
        for log_dir in ("log", "log2"):
            train_gpt2.run([*TINY.split(), f"--log_dir={log_dir}"])
        for path in ("log/model_03921.pt", "log/model_10000.pt", "log/model_19073.pt", "standin/model_00100.pt",
                     "mine/model_00200.pt"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copy("log/model_00001.pt", path)
        for name in ("standin-gpt2", "DIR"):
            play.main(["export", "log/model_00001.pt", name])
        for name, entries in TUNING.items():
            lines = [json.dumps(entry) + "\n" for entry in entries]
            (folder / f"{name}.jsonl").write_text("".join(lines))
        finetune.run(["classify", "--model=log/model_00001.pt", "--train=train.jsonl", "--device=cpu", "--batch=2"])
        finetune.run(["embed", "--model=log/model_00001.pt", "--train=pairs.jsonl", "--log_dir=finder",
                      "--device=cpu", "--batch=2"])
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def at_work(workplace, tmp_path, monkeypatch):
    """A copy of it for one test. Checkpoints are replaced, never changed: a second name for each will do."""
    def copy(a, b):
        return os.link(a, b) if a.endswith(".pt") else shutil.copy2(a, b)
    shutil.copytree(workplace, tmp_path / "here", symlinks=True, copy_function=copy)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "stdin", io.StringIO("To be, or\n"))


PROGRAMS = {"train_gpt2.py": train_gpt2.run, "finetune.py": finetune.run, "fineweb.py": fineweb.main,
            "play.py": play.main, "plot.py": plot.main, "look.py": look.main,
            "hellaswag.py": functools.partial(hellaswag.run, train_gpt2)}


@pytest.mark.parametrize("command", [c for c in commands() if is_run(c)])
def test_every_command_runs(command, at_work, capsys):
    """In its short form. A new command is run with the flags of the entry of SHORT that its line begins with."""
    short = SHORT[longest_beginning(command, SHORT)]
    words = shlex.split(f"{command} {short}")
    _, script, *argv = [word.replace("MODEL", "log/model_19073.pt") for word in words]
    if script == "play.py" and argv[0] == "export":
        shutil.rmtree(argv[2], ignore_errors=True)  # it wants a new one
    try:
        PROGRAMS[script](argv)
    except SystemExit as end:  # --estimate ends the program
        assert not end.code
    assert capsys.readouterr().out


def test_python_in_the_pages_runs(at_work, capsys):
    """What stands in a ```python fence, such as transformers' pipeline on what was exported to DIR."""
    pytest.importorskip("transformers")
    examples = [text for language, text in FENCES if language == "python"]
    for example in examples:
        exec(example.replace("max_new_tokens=50", "max_new_tokens=5"), {})
    assert examples and "To be, or" in capsys.readouterr().out


# --- what one will see ----------------------------------------------------------------------------

OUTPUTS = [text for language, text in FENCES if language == "text"]


def same_output(expected, printed, tolerance):
    """Are two texts alike? Words must be the same, numbers agree to `tolerance`; times and rates are not compared."""
    number = r"-?\d+\.?\d*(?:e[-+]\d+)?"
    words, numbers = [], []
    for text in (expected, printed):
        text = re.sub(r"(dt: |tok/sec: |\.pt in |a save: )[\d.]+", r"\1", re.sub(r"[\d.]+ min left", "min left", text))
        words.append(" ".join(re.sub(number, " 0 ", text).split()))
        numbers.append([float(n) for n in re.findall(number, text)])
    assert words[0] == words[1]
    assert all(abs(x - y) <= tolerance * max(1, abs(x)) for x, y in zip(*numbers, strict=True)), (expected, printed)


def run_as_printed(cwd, until=None):
    """python train_gpt2.py --preset=laptop, in a process of its own -> its lines, up to one that holds `until`"""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), "--preset=laptop", "--device=cpu",
               f"--data_root={ROOT}/input.txt"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as run:
        for line in run.stdout:
            if not line.startswith("validation takes"):
                lines.append(line.rstrip("\n"))
            if until is not None and until in line:
                run.kill()
                break
    assert until is not None or run.returncode == 0
    return lines


def test_the_first_lines_of_the_laptops_run(tmp_path):
    """README.md has them word for word, the numbers to four digits: they depend on the seed, hardly on the machine."""
    [expected] = [text for text in OUTPUTS if "step     0" in text]
    same_output(expected, "\n".join(run_as_printed(tmp_path, until="step     1 | loss")), 2e-4)


@pytest.mark.slow
def test_the_last_lines_of_the_laptops_run(tmp_path):
    """After 3,921 steps rounding has grown: another machine may end 0.05 elsewhere, and a batch 0.15."""
    [expected] = [text for text in OUTPUTS if "step  3921" in text]
    lines = run_as_printed(tmp_path)
    i = next(i for i, line in enumerate(lines) if line.startswith("step  3920"))
    last = "\n".join(lines[i : i + len(expected.splitlines())])
    same_output(expected, last, 0.15)
    printed, here = (float(re.search(r"validation loss: ([\d.]+)", text)[1]) for text in (expected, last))
    assert abs(printed - here) < 0.05


@pytest.mark.slow
def test_two_processes_as_the_page_says(tmp_path):
    """The very line, with two steps, gives the first losses that README.md prints."""
    [command] = [c for c in commands() if "--nproc_per_node=2 " in c and "--dtype=float32" in c]
    words = shlex.split(command)[1:]
    words[words.index("train_gpt2.py")] = os.path.join(ROOT, "train_gpt2.py")
    result = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words, "--max_steps=2", "--save_every=0",
                             f"--data_root={ROOT}/input.txt"], capture_output=True, text=True, cwd=tmp_path,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    [expected] = [text for text in OUTPUTS if "step     0" in text]
    for line in [line for line in expected.splitlines() if "| loss: " in line]:
        assert line[: line.index(" | lr")][:-2] in result.stdout  # all but the last two digits


# --- figures that come from files -----------------------------------------------------------------

def table(page, first_cell):
    """The rows of the table that begins with this cell -> lists of cells"""
    [text] = re.findall(rf"^\| {re.escape(first_cell)} \|.*\n((?:\|.*\n)+)", ENGLISH[page], re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()[1:]]


def test_the_reference_table_is_that_of_the_curve():
    """curves.md has the figures of assets/reference_curve.csv, and the bands of the program's rule."""
    with open(os.path.join(ROOT, "assets", "reference_curve.csv"), encoding="utf-8") as f:
        curve = {row["step"]: row for row in csv.DictReader(line for line in f if not line.startswith("#"))}
    rows = table("docs/curves.md", "step | run A")
    assert len(rows) == 10
    for step, val_a, val_b, band, hella_a, hella_b in rows:
        row = curve[step]
        assert abs(float(row["val_a"]) - float(val_a)) < 6e-4 and abs(float(row["val_b"]) - float(val_b)) < 6e-4, step
        assert float(row["hella_a"]) == float(hella_a) and float(row["hella_b"]) == float(hella_b), step
        assert float(band) == (0.05 if int(step) < 1000 else 0.03 if int(step) < 3000 else 0.02), step


def test_what_fits_is_what_estimate_prints(capsys):
    """The table of machines.md, row by row."""
    with pytest.raises(SystemExit):
        train_gpt2.run(["--estimate"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| gpt2")]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed] == table("docs/machines.md", "preset")


def test_the_arithmetic_of_machines_is_right():
    """How much memory a B needs, how long a card computes, how large the presets are, where ten seeds end."""
    text = " ".join(ENGLISH["docs/machines.md"].split())
    gpt_config = train_gpt2.GPTConfig()
    config = train_gpt2.TrainConfig(B=64)
    for B, compiled in itertools.product((4, 16, 32, 64), (True, False)):
        gb = peak(gpt_config, replace(config, B=B), 1, compiled=compiled)[1] / 1e9
        assert re.search(rf"\b{gb:.1f}( GB)? for (B = )?{B}\b", text), (B, compiled, gb)
    alone, together = (peak(gpt_config, config, n)[1] for n in (1, 8))
    assert f"each needs {(together - alone) / 1e9:.2f} GB more" in text
    flops = 10e9 * flops_per_token(train_gpt2.GPTConfig(vocab_size=50257), 1024)
    peaks = {"V100": PEAKS["V100-SXM2"], **PEAKS}
    for card, tflops, hours in table("docs/machines.md", "card"):
        assert float(tflops) == peaks[card]
        assert flops / (0.4 * peaks[card] * 1e12) / 3600 == pytest.approx(float(hours.split()[0]), rel=0.02)
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        shape = {k: v for k, v in train_gpt2.PRESETS[name].items() if k.startswith("n_")}
        assert f"{count_parameters(train_gpt2.GPTConfig(vocab_size=50257, **shape)) / 1e6:.0f}M" in text
    with open(os.path.join(ROOT, "assets", "laptop_curve.json"), encoding="utf-8") as f:
        mean, spread = json.load(f)["val"]["3921"]
    assert f"end at {mean} on average, with a standard deviation of {spread}" in text


# --- what they point to ---------------------------------------------------------------------------

ALL = {**ENGLISH, **CHINESE, **find_pages("exercises/*.md")}


@pytest.mark.parametrize("page", ALL)
def test_links_lead_somewhere(page):
    """Files and pictures exist, and so do the headings that anchors name."""
    for link in set(LINK.findall(prose(ALL[page]))):
        if link.startswith("http"):
            continue
        path, anchor = resolve(link, page)
        assert os.path.exists(os.path.join(ROOT, path)) or path in COMING, link
        assert not anchor or anchor in anchors(ALL[path]), link


@pytest.mark.parametrize("page", ALL)
def test_hidden_answers_are_hidden(page):
    """<details> and </details> begin a line of their own: inside a paragraph, GitHub shows the answer or its markup."""
    tags = re.findall(r"^.*</?details>.*$", ALL[page], re.MULTILINE)
    assert all(re.fullmatch(r"<details>(<summary>[^<]+</summary>)?|</details>", line) for line in tags), page
    assert sum(line == "</details>" for line in tags) * 2 == len(tags), page


def test_pages_that_are_there_are_no_longer_coming():
    assert {path for path in COMING if os.path.exists(os.path.join(ROOT, path))} == set()


def test_the_tests_that_are_named_exist():
    defined = set()
    for path in glob.glob(os.path.join(ROOT, "tests", "**", "*.py"), recursive=True):
        defined |= {os.path.basename(path).removesuffix(".py"), os.path.relpath(path, ROOT).replace(os.sep, "/")}
        with open(path, encoding="utf-8") as f:
            defined |= set(re.findall(r"^def (test_\w+)", f.read(), re.MULTILINE))
    for page, text in ENGLISH.items():
        assert set(re.findall(r"\btest_\w+|\btests/[\w/]+\.py", text)) - defined == set(), page


# --- what a page is -------------------------------------------------------------------------------

def test_the_readme_is_short():
    """It is read in three minutes. What it has no room for goes into docs/."""
    assert len(ENGLISH["README.md"].splitlines()) <= 140


@pytest.mark.parametrize("page", [page for page in ALL if page.startswith("docs/")])
def test_a_page_ends_with_what_to_read_next(page):
    """Nobody is left alone at the bottom: the last paragraph leads to another page. The README leads to each."""
    assert ".md)" in ALL[page].rstrip().split("\n\n")[-1]
    readme = CHINESE["README.zh.md"] if page.startswith("docs/zh/") else ENGLISH["README.md"]
    assert f"]({page})" in readme


def test_a_machine_is_named_once():
    """Figures have a date; on which machine they were measured stands in speed.md."""
    naming = {page for page, text in ALL.items() if re.search(r"\bEPYC\b|\bXeon\b", text)}
    assert naming == {"docs/speed.md", "docs/zh/speed.md"}
