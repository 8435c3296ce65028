"""
Processes that may die. A part of the bench runs in one, and so does each contender, so that memory
that runs out, a crash or a hang costs one row of the report and nothing else.
"""
import contextlib
import multiprocessing
import os
import signal
import time

# a fresh Python: a copy of this process could not use CUDA, and would share its peak of memory
SPAWN = multiprocessing.get_context("spawn")


class Died(Exception):
    """A process ended, or took too long, before it answered. Its text says which."""


class Child:
    """
    A process that runs function(pipe, *args), where pipe.send and pipe.recv reach us. At the end of
    `with Child(...) as child:` it is killed, with all that it has started.
    """

    def __init__(self, function, *args):
        self.pipe, other_end = SPAWN.Pipe()
        self.process = SPAWN.Process(target=function, args=(other_end, *args))
        self.process.start()
        other_end.close()  # the child has the only one now, so its death closes the pipe

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.is_alive():
            kill_family(self.process.pid)
        self.process.join()

    def receive(self, seconds=None):
        """What the process sends next. Raises Died if it ends, or sends nothing for so long."""
        if seconds is not None and not self.pipe.poll(max(0, seconds)):
            raise Died("took too long")
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            raise Died(f"died of {signal.Signals(-code).name}" if code < 0
                       else f"died with exit code {code}")

    def ask(self, question):
        """Send a question -> the answer"""
        with contextlib.suppress(BrokenPipeError):  # it has died, as receive will say
            self.pipe.send(question)
        return self.receive()


def list_processes():
    """All processes of this machine -> {pid: parent's pid}; Linux only"""
    found = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{int(entry)}/stat", encoding="utf-8", errors="replace") as f:
                state, parent = f.read().rpartition(")")[2].split()[:2]
            if state != "Z":  # a zombie holds neither files nor memory
                found[int(entry)] = int(parent)
    return found


def family(pid):
    """A process and its descendants -> list of pids"""
    parents = list_processes()
    found = [pid]
    for known in found:  # grows while we iterate
        found += [child for child, parent in parents.items() if parent == known]
    return found


def kill_family(pid):
    """SIGKILL a process and its descendants, and wait until they have released the card."""
    pids = family(pid)
    for one in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while list_processes().keys() & set(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
