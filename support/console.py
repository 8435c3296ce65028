"""
One way to speak and one way to fail. Come here when a line is printed twice or not at all under
torchrun, or to see what becomes of an error.

Whatever a user can put right is a UserError: the fact, and what to type next. It is raised where it
is met, caught in one place (run_program), and printed as one line; the exit code is 2. Anything
else that is raised is a bug of ours: a line too, exit code 1, and its traceback goes to a file.
With --debug, which every program takes, it is printed.
"""
import argparse
import contextlib
import errno
import os
import signal
import sys
import tempfile
import time
import traceback

from tqdm import tqdm


# what commands a terminal, but for tab and line ends: a model can write what its text has taught it
CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], "\ufffd")


class UserError(Exception):
    """
    Something that the user can put right. text: the fact and the next command, in one line. who
    says it, where torchrun has started several processes: "all" have met it, and the first one
    speaks; "node", the first one on each machine; "me", this process alone has met it, and speaks.
    exit_code: what the program ends with.
    """

    def __init__(self, text, who="all", exit_code=2):
        super().__init__(text)
        self.who = who
        self.exit_code = exit_code


def is_first_process():
    """
    Is this the only process, or the first of those that torchrun has started? (The variable is
    torchrun's.)
    """
    return os.environ.get("RANK", "0") == "0"


def is_first_on_node():
    """
    The same among the processes of this machine, for what each machine does once: a download, say.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"


def print0(*args):
    """print, by the first process only: eight copies of a line say no more than one."""
    if is_first_process():
        print_here(*args)


def print_here(*args):
    """print, by this process. Where nobody can read it the run goes on: `| head`, a full disk."""
    text = " ".join(map(str, args))
    try:
        print(text.translate(CONTROLS), flush=True)
    except OSError as e:
        silence(sys.stdout)
        print_error(f"warning: the output cannot be written ({e.strerror}): going on without it")


def print_error(*args):
    """The same to stderr."""
    try:
        print(*args, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def print_beside_bar(line, stream=None):
    """The same while a progress bar is shown, which is drawn anew below the line."""
    with tqdm.external_write_mode():
        if stream is sys.stderr:
            print_error(line)
        else:
            print_here(line)


def silence(stream):
    """What is written to stdout or stderr from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def open_streams():
    """
    Make stdin, stdout and stderr usable, whatever we were started with. Closed ones (`2>&-`) are
    None in Python, and the next file that is opened gets their number: what a library writes to
    stderr would stand in a checkpoint.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        if hasattr(getattr(sys, name), "reconfigure"):
            # a terminal or a pipe that is not in UTF-8 is no reason to end
            getattr(sys, name).reconfigure(errors="replace")


def progress(batches, what, if_slow):
    """
    Yield from `batches` under a progress bar of the first process. If the first one shows that all
    will take over a minute, a line says how long, and what would shorten it (if_slow).
    """
    t0 = time.time()
    # None: no bar where the output is a file or a pipe
    hidden = None if is_first_process() else True
    try:
        bar = tqdm(total=len(batches), desc=what, leave=False, disable=hidden)
    except OSError:
        bar = tqdm(disable=True)
    for i, batch in enumerate(batches):
        yield batch
        with contextlib.suppress(OSError):  # the terminal has gone
            bar.update()
        left = (time.time() - t0) * (len(batches) - 1)
        if i == 0 and left > 60:
            print0(f"{what} takes about {left / 60:.0f} minutes here: {if_slow} would shorten it")
    with contextlib.suppress(OSError):
        bar.close()


def one_line(error, length=150):
    """
    What a foreign library said, which may be pages, as a piece of a line: "OSError: no such file".
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:length]


def printable(value):
    """
    A name or a value from a file as text for a terminal: of what would move the cursor or change
    the colours, and of what is no character, U+FFFD is left.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))


def say(error):
    """Print a UserError, once for all who have met it."""
    speaks = {"all": is_first_process(), "node": is_first_on_node(), "me": True}[error.who]
    if not speaks:
        # if we left first, torchrun would stop the others before the one can speak; so we wait for
        # torchrun to stop us. if it does not, the other one has not met this error, and we say it
        # after all
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    # the others: stopped by Ctrl-C, another process is gone, ...
    prefix = "error: " if error.exit_code == 2 else ""
    print_error(prefix + printable(" ".join(str(error).splitlines())))


def run_program(run, argv=None):
    """
    The last line of each program: run(argv), then leave. The one place where an error becomes a
    line and an exit code.
    """
    open_streams()
    argv = sys.argv[1:] if argv is None else argv
    exit_code = 0
    try:
        run([arg for arg in argv if arg != "--debug"])
    except UserError as error:
        exit_code = error.exit_code
        say(error)
    except KeyboardInterrupt:
        exit_code = 130  # as the shell counts a program that Ctrl-C ended
    except BrokenPipeError:  # whoever read our output has seen enough: | head
        silence(sys.stdout)
    except ModuleNotFoundError as error:  # a package that only some commands need
        exit_code = 2
        say(UserError(missing_package(error), who="me"))
    except Exception as error:  # a bug of ours, or what no file of ours has foreseen
        error = unexpected(error, argv)
        exit_code = error.exit_code
        say(error)
    leave(exit_code)


def missing_package(error):
    """A ModuleNotFoundError -> a line that says what to install."""
    package = (error.name or str(error)).partition(".")[0]
    package = {"sklearn": "scikit-learn"}.get(package, package)  # to install it has another name
    return (f"the package {package} is not installed here: pip install {package}, or all that "
            "there are: pip install -r requirements.txt")


def unexpected(error, argv):
    """
    An exception that nobody foresaw -> the UserError that says it. Its traceback is added to
    error.txt, in log_dir if there is one yet.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        # stdout's disk, as a rule: what writes files says itself which one did not fit
        return UserError(f"cannot write ({error.strerror}): make room", "me", exit_code=1)
    if isinstance(error, MemoryError):
        return UserError("out of memory: this is more than the machine has", "me")
    if isinstance(error, OSError) and error.filename is not None:
        # no right to read it, a directory where a file should be, ...
        return UserError(f"{error.filename}: {error.strerror}", "me")
    if "--debug" in argv:
        print_error("".join(traceback.format_exception(error)).rstrip())
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--log_dir", "--out", default="log")
    folder = parser.parse_known_args(argv)[0].log_dir
    path = os.path.join(folder, "error.txt")
    try:
        if not os.path.isdir(folder) or os.path.exists(path) and not os.path.isfile(path):
            file, path = tempfile.mkstemp(prefix="gpt2-error-", suffix=".txt")
            os.close(file)
        with open(path, "a", encoding="utf-8", errors="replace") as f:
            print(f"{time.ctime()}: {' '.join(sys.argv)}", file=f)
            traceback.print_exception(error, file=f)
        where = f"its traceback is in {path}, and --debug prints it"
    except OSError:
        where = "--debug prints its traceback"
    return UserError(f"a fault of this program: {one_line(error)}: {where}", "me", exit_code=1)


def leave(exit_code):
    """
    End this process. One of several ends at once, all being done and written: under --shard the
    process group outlives its destruction, and a thread of gloo that frees a tensor while Python
    ends is an abort ("terminate called without an active exception", one exit in 25 to 100 with
    torch 2.13), for which torchrun says 1.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as e:
            silence(stream)
            # a reader that has left has seen enough; on a full disk something is missing
            if stream is sys.stdout and not isinstance(e, BrokenPipeError):
                exit_code = max(exit_code, 1)
                print_error(f"cannot write ({e.strerror}): make room")
    if "RANK" in os.environ:
        os._exit(exit_code)
    sys.exit(exit_code)
