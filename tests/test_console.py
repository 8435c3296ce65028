"""Facts about speaking and failing: who says an error under torchrun, what is printed when nobody reads it."""
import os
import subprocess
import sys

import pytest
from small_runs import ROOT

from support import console
from support.console import UserError, one_line, print0, progress, say


def run(code, shell="", **env):
    """Python code with run_program at hand, in a process of its own, its stdout perhaps piped into a shell command."""
    code = "import os, sys, time\nfrom support.console import UserError, leave, print0, run_program\n" + code
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**clean, **env}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if shell:
        reader = subprocess.run(shell, shell=True, stdin=program.stdout, capture_output=True, text=True)
        program.stdout.close()
        return program.wait(60), reader.stdout, program.stderr.read()
    out, err = program.communicate(timeout=60)
    return program.returncode, out, err


@pytest.mark.parametrize("raised, code, err", [
    ("UserError('wrong:\\ntry this')", 2, "error: wrong: try this\n"),
    ("UserError('lost another process', exit_code=1)", 1, "lost another process\n"),
    ("UserError('stopped: it goes on', exit_code=130)", 130, "stopped: it goes on\n"), ("KeyboardInterrupt", 130, ""),
])
def test_an_error_is_one_line_and_an_exit_code(raised, code, err):
    assert run(f"def program(argv):\n    raise {raised}\nrun_program(program)") == (code, "", err)


@pytest.mark.parametrize("text, said", [
    ("no such file", "OSError: no such file"),
    ("Too many\n  requests. " + "We had to limit your address. " * 9,
     "OSError: Too many requests" + ". We had to limit your address" * 4),
    ("size mismatch: " + "transformer.wte.weight, " * 9,
     "OSError: size mismatch:" + " transformer.wte.weight," * 5 + " ..."),
    ("x" * 200, "OSError: ..."),
], ids=["short", "sentences", "one long sentence", "no words"])
def test_the_error_of_a_library_is_cut_between_sentences(text, said):
    """Never within one, where the rest could say the opposite. A sentence that is too long ends in dots."""
    assert one_line(OSError(text)) == said and len(said) <= 150


def test_a_bug_shows_its_traceback():
    """With the exit code 1: whoever changes the code needs the line that failed, not a summary."""
    code, _, err = run("run_program(lambda argv: no_such_name)")
    assert code == 1 and "Traceback" in err and err.endswith("NameError: name 'no_such_name' is not defined\n")


def test_a_character_that_the_terminal_lacks_ends_no_run():
    """A sample may hold any character, and a terminal, or Windows with `> out.txt`, may know 256 of them."""
    code, out, _ = run("run_program(lambda argv: print0('caf\\u00e9'))", PYTHONIOENCODING="ascii")
    assert (code, out) == (0, "caf?\n")


@pytest.mark.parametrize("who, speakers", [
    ("all", [(0, 0)]), ("node", [(0, 0), (2, 0)]), ("me", [(0, 0), (1, 1), (2, 0)])])
def test_who_speaks_for_all(who, speakers, monkeypatch, capsys):
    """Three processes on two machines meet the same error. The others wait, so that the one that speaks ends first."""
    for rank, local_rank in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        waited = []
        monkeypatch.setattr("support.console.time.sleep", waited.append)
        say(UserError("no shards", who))
        assert capsys.readouterr().err == "error: no shards\n", "after the wait everyone speaks"
        assert waited == ([] if (rank, local_rank) in speakers else [10])


def test_the_first_process_prints(monkeypatch, capsys):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        print0("from", rank)
    assert capsys.readouterr().out == "from 0\n"


def test_what_each_process_prints_survives_too():
    """Samples are printed by every process, before the last checkpoint is written."""
    code, _, err = run("from support.console import print_here\ndef program(argv):\n    time.sleep(0.5)\n"
                       "    print_here('a sample')\n    sys.stderr.write('saved')\nrun_program(program)", shell="true")
    assert code == 0 and err.endswith("saved")


def test_nobody_reads_the_output_any_more():
    """`| head -1` takes one line and leaves: the run goes on, and says so once."""
    code, out, err = run("def program(argv):\n    for i in range(3):\n        print0(i)\n        time.sleep(0.3)\n"
                         "    sys.stderr.write('done')\nrun_program(program)", shell="head -1")
    assert (code, out) == (0, "0\n") and err.endswith("done") and err.count("warning: the output cannot") == 1


def test_head_has_read_enough():
    """`play.py sample ... | head -1`: no traceback, which would look like a bug."""
    _, out, err = run("def program(argv):\n    for i in range(100_000):\n        print(i)\nrun_program(program)",
                      shell="head -1")
    assert (out, err) == ("0\n", "")


def test_closed_outputs_end_no_run(tmp_path):
    """`>&- 2>&-`: Python has no streams then. The next file to be opened is not taken for one of them."""
    code = ("import os\nfrom support.console import print0, run_program\ndef program(argv):\n    print0('a line')\n"
            f"    with open({str(tmp_path / 'model.pt')!r}, 'wb') as f:\n        os.write(2, b'a signal')\n"
            "        f.write(b'weights')\nrun_program(program)")
    command = 'exec "$0" -c "$1" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, sys.executable, code], cwd=ROOT).returncode == 0
    assert (tmp_path / "model.pt").read_bytes() == b"weights"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_ends_no_run():
    """Neither `> out.txt` on it nor `2> err.txt`: the run goes on to its own end, and keeps its exit code."""
    code = ("import sys\nfrom support.console import UserError, print0, print_beside_bar, progress, run_program\n"
            "def program(argv):\n    print0('a line')\n    print_beside_bar('skipped', sys.stderr)\n"
            "    list(progress([1, 2], 'validation', '--val_tokens'))\n    print0('another')\n"
            "    raise UserError('the end')\nrun_program(program)")
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=full).returncode == 2


@pytest.mark.parametrize("seconds, line", [
    ([50, 5, 0.6, 9], None), ([50, 5, 0.8, 9], "a minute"), ([0, 0, 1, 0], "2 minutes"), ([0, 0, 30, 0], "48 minutes")])
def test_a_long_eval_says_how_long_it_takes(seconds, line, monkeypatch, capsys):
    """A hundred batches, of which the first ones are slow because they load kernels: the third one tells."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    for i in progress(range(99), "HellaSwag", "--no-hellaswag"):
        now[0] += seconds[min(i, 3)]
    line = line and f"HellaSwag takes about {line} more here: --no-hellaswag would shorten it\n"
    assert capsys.readouterr().out == (line or "")


def test_a_terminal_that_has_gone():
    """A lost connection: tqdm draws its bar no longer, and all batches come."""
    pty = pytest.importorskip("pty")
    code = ("from support.console import progress\n"
            "for i in progress([1, 2, 3], 'validation', '--val_tokens'):\n    print(i, flush=True)\n    input()\n"
            "for i in progress([4, 5], 'HellaSwag', '--no-hellaswag'):\n    print(i)")
    ours, theirs = pty.openpty()
    program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    first = program.stdout.readline()
    os.close(ours)
    out, _ = program.communicate("\n\n\n", timeout=60)
    assert (program.returncode, first + out) == (0, "1\n2\n3\n4\n5\n")


@pytest.mark.parametrize("rank, expected", [({"RANK": "1"}, "all"), ({}, "all, and later")])
def test_a_process_of_torchrun_leaves_at_once(rank, expected):
    """What it has printed comes out, its exit code is 0, and nothing runs after that, where threads may abort."""
    code = "import atexit; atexit.register(print, ', and later', end=''); print('all', end=''); leave(0)"
    assert run(code, **rank)[:2] == (0, expected)


def test_a_missing_package_is_named():
    """With the line that installs it."""
    code, _, err = run("def program(argv):\n    import no_such_package.part\nrun_program(program)")
    assert code == 2 and err.count("\n") == 1
    assert "the package no_such_package is not installed here: pip install no_such_package, or all" in err
