"""Facts about speaking and failing: who says an error under torchrun, what is printed when nobody reads it."""
import os
import subprocess
import sys

import pytest
from small_runs import ROOT

from support.console import UserError, print0, printable, progress, say


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


def test_a_bug_of_ours_is_a_line_and_its_traceback_a_file(tmp_path):
    """In log_dir if it is there, else where the system keeps temporary files; what stood in the file stays."""
    (tmp_path / "error.txt").write_text("mine\n")
    program = "sys.argv = ['train_gpt2.py', *ARGV]\nrun_program(lambda argv: no_such_name)"
    for name, arguments in (("there", [f"--log_dir={tmp_path}"]), ("not there", [f"--log_dir={tmp_path / 'no'}"])):
        code, out, err = run(f"ARGV = {arguments}\n{program}", TMPDIR=str(tmp_path))
        assert (code, out) == (1, "") and err.count("\n") == 1, name
        assert err.startswith("a fault of this program: NameError: name 'no_such_name' is not defined: its traceback")
    text = (tmp_path / "error.txt").read_text()
    assert text.startswith("mine\n") and text.count("Traceback (most recent call last)") == 1
    [other] = tmp_path.glob("gpt2-error-*.txt")
    assert str(other) in err and "NameError" in other.read_text()
    assert f"train_gpt2.py --log_dir={tmp_path}\n" in text


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    """A directory where a file should be, no right to read it: the system's words, and no talk of a fault of ours."""
    code, _, err = run(f"run_program(lambda argv: open('{tmp_path}'))")
    assert (code, err) == (2, f"error: {tmp_path}: Is a directory\n")


def test_a_model_does_not_command_the_terminal():
    """What it writes is what its text has taught it, escape sequences too; tabs and line ends stay."""
    code, out, _ = run("run_program(lambda argv: print0('a\\tb\\n', '\\x1b[31mred', '\\x9b1m', '　'))")
    assert (code, out) == (0, "a\tb\n \ufffd[31mred \ufffd1m 　\n")


def test_a_fault_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "error.txt")
    code, _, err = run(f"sys.argv = ['x', '--log_dir={tmp_path}']\nrun_program(lambda argv: no_such_name)",
                       TMPDIR=str(tmp_path))
    assert code == 1 and f"{tmp_path}/gpt2-error-" in err


def test_debug_prints_the_traceback(tmp_path):
    """Every program takes the flag; the program itself does not see it. It helps where no file can be written, too."""
    (tmp_path / "error.txt").mkdir()
    code, _, err = run(f"sys.argv = ['x', '--debug', '--log_dir={tmp_path}']\nrun_program(lambda argv: argv[1])")
    assert code == 1 and "Traceback" in err and "IndexError" in err.splitlines()[-1]


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


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full",
                                     ">/dev/full 2>&-"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_no_stream_ends_a_run(streams, tmp_path):
    """
    stdin, stdout and stderr closed, or on a full disk: the run goes on to its own end, and what is meant for a stream
    that was closed does not stand in the file that was opened next.
    """
    code = """
import os, signal, sys
from support.console import UserError, print0, print_beside_bar, progress, run_program
from support.processes import Signals
def program(argv):
    Signals().catch()
    with open(argv[0], "w") as f:
        os.kill(os.getpid(), signal.SIGTERM)
        print0("a line")
        print_beside_bar("skipped", sys.stderr)
        sys.stdin.read(0)
        for i in progress([1, 2], "validation", "--val_tokens"):
            f.write(str(i))
    raise UserError("the end")
run_program(program)
"""
    program = ["sh", "-c", f'"$0" -c "$1" "$2" {streams}', sys.executable, code, str(tmp_path / "checkpoint")]
    assert subprocess.run(program, cwd=ROOT, capture_output=True, timeout=60).returncode == 2
    assert (tmp_path / "checkpoint").read_text() == "12"


def test_a_terminal_that_has_gone(monkeypatch):
    """A progress bar on it is no longer drawn, and all batches come."""
    class Terminal:
        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            self.write("")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress([1, 2, 3], "validation", "--val_tokens")) == [1, 2, 3]


@pytest.mark.parametrize("rank, expected", [({"RANK": "1"}, "all"), ({}, "all, and later")])
def test_a_process_of_torchrun_leaves_at_once(rank, expected):
    """What it has printed comes out, its exit code is 0, and nothing runs after that, where threads may abort."""
    code = "import atexit; atexit.register(print, ', and later', end=''); print('all', end=''); leave(0)"
    assert run(code, **rank)[:2] == (0, expected)


def test_nothing_from_a_file_commands_the_terminal(capsys):
    """Escape sequences, backspaces, halves of characters (a name in Latin-1): U+FFFD. Letters of any script stay."""
    assert printable("é 中 😀 a\x1b[2J\x08\x07\udce9\u202e") == "é 中 😀 a\ufffd[2J\ufffd\ufffd\ufffd\ufffd"
    say(UserError("no \x1b]0;title\x07 here", who="me"))
    assert capsys.readouterr().err == "error: no \ufffd]0;title\ufffd here\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_an_empty_one(closed, tmp_path):
    """Python has None for it, of which every method is an AttributeError. What another stream says is still said."""
    code = ("from support.console import run_program\nfrom tqdm import tqdm\ndef program(argv):\n    sys.stdin.read()\n"
            "    print('out')\n    list(tqdm([1]))\n    raise UserError('wrong')\nrun_program(program)")
    code = "import sys\nfrom support.console import UserError\n" + code
    result = subprocess.run(f'"$PYTHON" -c "$CODE" {closed}', shell=True, cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "PYTHON": sys.executable, "CODE": code})
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert (result.stdout == "out\n") == (">&-" not in closed.split())
    assert ("error: wrong" in result.stderr) == ("2>&-" not in closed)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("flush", [True, False])
def test_output_that_a_full_disk_refuses_is_an_error(flush):
    """What was to be kept is not there: a line and exit code 1, where it was 0 and nothing, or a fault of ours."""
    code = f"from support.console import run_program\nrun_program(lambda argv: print('x', flush={flush}))"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    line = "cannot write (No space left on device): make room\n"
    assert (result.returncode, result.stderr) == (1, line)


def test_a_missing_package_is_named():
    """With the line that installs it."""
    code, _, err = run("def program(argv):\n    import no_such_package.part\nrun_program(program)")
    assert code == 2 and err.count("\n") == 1
    assert "the package no_such_package is not installed here: pip install no_such_package, or all" in err
