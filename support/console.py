"""
One way to print and one way to fail. Come here when a line appears twice or not at all under
torchrun, or to see how an error becomes an exit code.

A UserError is a mistake that the user can correct: it states the fact and what to type next. It is
raised where the mistake is found, caught in one place (run_program) and printed as one line, and
the exit code is 2. Any other exception is a bug: Python prints its traceback, and the exit code is
1.
"""
import os
import signal
import sys
import textwrap
import time

from tqdm import tqdm


class UserError(Exception):
    """
    A mistake that the user can correct. text: the fact and what to type next, in one line. who:
    which of torchrun's processes found the mistake. "all": the first process prints the line;
    "node": the first process of each machine; "me": only this process found it, and prints it.
    exit_code: the exit code of the program.
    """

    def __init__(self, text, who="all", exit_code=2):
        super().__init__(text)
        self.who = who
        self.exit_code = exit_code


def is_first_process():
    """Is this the only process, or the first of torchrun's? (torchrun sets RANK.)"""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_node():
    """Is this the first process of its machine? That one downloads files, for example."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def print0(*args):
    """print in the first process only, so that eight processes print a line once."""
    if is_first_process():
        print_here(*args)


def print_here(*args, stream=None):
    """
    print in this process, to stdout or to another stream. If the output cannot be written any more
    (the terminal is closed, the reader of a pipe has ended, the disk is full), the run goes on
    without it.
    """
    stream = stream or sys.stdout
    try:
        print(*args, file=stream, flush=True)
    except OSError as e:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if stream is sys.stdout:
            print_here(f"warning: the output cannot be written ({e.strerror}): going on without it",
                       stream=sys.stderr)


def print_beside_bar(line, stream=None):
    """print_here while a progress bar is shown. tqdm redraws the bar below the line."""
    with tqdm.external_write_mode():
        print_here(line, stream=stream)


def progress(batches, what, if_slow):
    """
    Yield the batches of a list, with a progress bar in the first process. If the third batch shows
    that the others will take over a minute, a line says how long, and what would shorten it
    (if_slow). The first batches are slower, because they load kernels.
    """
    # None: no bar if stderr is a file or a pipe
    hidden = None if is_first_process() else True
    bar = tqdm(total=len(batches), desc=what, leave=False, disable=hidden)
    for i, batch in enumerate(batches):
        began = time.monotonic()
        yield batch
        bar.update()
        left = (time.monotonic() - began) * (len(batches) - 3)
        if i == 2 and left > 60:
            minutes = "a minute" if left < 90 else f"{left / 60:.0f} minutes"
            print0(f"{what} takes about {minutes} more here: {if_slow} would shorten it")
    bar.close()


def one_line(error, length=150):
    """
    The error of another library, whose text may fill pages -> "OSError: no such file". A long text
    is cut after a sentence; one long sentence is cut between words, and ends in "...".
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if len(text) <= length:
        return text
    sentences = text[:length].rpartition(". ")[0]
    return sentences or textwrap.shorten(text, length, placeholder=" ...")


def say(error):
    """Print a UserError once, although several processes may have found it."""
    speaks = {"all": is_first_process(), "node": is_first_on_node(), "me": True}[error.who]
    if not speaks:
        # If this process ended now, torchrun might stop the one that prints before it does. So wait
        # until that one has ended, and torchrun ends this one. Still here after ten seconds? Then
        # only this process has found the error, and it prints the line itself.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    # with other exit codes nothing was typed wrong: Ctrl-C, another process is gone
    prefix = "error: " if error.exit_code == 2 else ""
    print_here(prefix + " ".join(str(error).splitlines()), stream=sys.stderr)


def run_program(run, argv=None):
    """
    The last line of each program: call run(argv), and turn an error into a line and an exit code.
    Nothing else in the project does that.
    """
    for name in ("stdout", "stderr"):
        # closed by `>&-`, it is None, and the next file to be opened would take its place
        stream = getattr(sys, name) or open(os.devnull, "w")
        # a sample may have a character that the terminal's encoding lacks: print a ? instead
        stream.reconfigure(errors="replace")
        setattr(sys, name, stream)
    exit_code = 0
    try:
        run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        exit_code = error.exit_code
        say(error)
    except KeyboardInterrupt:
        exit_code = 130  # a shell's code for Ctrl-C
    except BrokenPipeError:  # `| head` has read enough
        exit_code = 141  # a shell's code for SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
    except ModuleNotFoundError as error:  # a package that only some commands need
        exit_code = 2
        say(UserError(missing_package(error), who="me"))
    leave(exit_code)


def missing_package(error):
    """ModuleNotFoundError -> a line that says what to install"""
    package = (error.name or str(error)).partition(".")[0]
    package = {"sklearn": "scikit-learn"}.get(package, package)  # imported as, installed as
    return (f"the package {package} is not installed here: pip install {package}, or all "
            "packages: pip install -r requirements-dev.txt")


def leave(exit_code):
    """
    End this process. Under torchrun, end it at once, without Python's cleanup: there, a thread of
    gloo that frees a tensor may abort the process ("terminate called without an active exception",
    in one of 25 to 100 exits under --shard with torch 2.13), and torchrun reports a failure.
    """
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
