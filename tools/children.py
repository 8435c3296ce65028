"""
Processes that may die. Come here to see what becomes of the report when a process of the bench runs
out of memory, hangs, or is stopped with Ctrl-C.

The process of a part measures one thing after another, and prints what it finds as lines of JSON:

    {"begins": "compiled"}                          a measurement begins
    {"row": "step", "figures": {"ms": 140.2}}       a row: a measurement may print several
    {"ended": "compiled", "seconds": 70.1}          the measurement is complete

The process of a contender waits for questions on stdin, and answers each with a line of JSON.
"""
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time


def list_processes():
    """All processes of this machine -> {pid: (parent's pid, process group)}; Linux only"""
    found = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{int(entry)}/stat", encoding="utf-8", errors="replace") as f:
                state, parent, group = f.read().rpartition(")")[2].split()[:3]
            if state != "Z":  # a zombie holds neither files nor memory
                found[int(entry)] = (int(parent), int(group))
    return found


def family(pid):
    """
    A process, its process group, and all their descendants -> list of pids. (torchrun gives each of
    its processes a group of its own.)
    """
    processes = list_processes()
    group = [other for other, (_, its_group) in processes.items() if its_group == pid]
    found = list(dict.fromkeys([pid, *group]))
    for known in found:  # grows while we iterate
        found += [other for other, (parent, _) in processes.items()
                  if parent == known and other not in found]
    return found


def kill_family(process):
    """SIGKILL a process (Popen) and its family, and wait until they have released the card."""
    pids = family(process.pid)
    if process.poll() is not None:
        pids.remove(process.pid)  # it has ended, and its number may be somebody else's by now
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while list_processes().keys() & set(pids) and time.monotonic() < deadline:
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------
# the process of a contender

class Died(Exception):
    """A contender's process has ended early, usually because memory ran out."""


@contextlib.contextmanager
def contender_process(command):
    """
    Start a process that answers questions -> ask: ask("step") sends the line "step" and returns
    what the answer's JSON holds. Raises Died where no answer comes.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        def ask(question):
            with contextlib.suppress(BrokenPipeError):  # it has died: there will be no answer
                process.stdin.write(f"{question}\n")
                process.stdin.flush()
            for line in process.stdout:
                if line.startswith("{"):  # other lines are a library's
                    return json.loads(line)
            raise Died(f"died with exit code {process.wait()}")
        try:
            yield ask
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # the end of its stdin ends it


# -------------------------------------------------------------------------------------------------
# the process of a part

class Child:
    """A process that prints lines of JSON. Its stderr goes to a file."""

    def __init__(self, command, log):
        self.log = log
        self.log_start = os.path.getsize(log) if os.path.exists(log) else 0
        with open(log, "ab") as f:
            # a process group of its own: Ctrl-C reaches only us, and we end the child
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=f, text=True,
                                            errors="replace", start_new_session=True)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        """Runs in a thread, since reading from a pipe has no time limit."""
        for line in self.process.stdout:
            if line.startswith("{"):  # other lines are a library's
                self.lines.put(line)
        self.lines.put(None)  # the end

    def next(self, seconds):
        """The next line as a dict; None at the end. Raises queue.Empty after so many seconds."""
        line = self.lines.get(timeout=max(0.0, seconds))
        return None if line is None else json.loads(line)

    def last_words(self):
        """Exit code and the last line of stderr -> text"""
        code = self.process.wait()
        with open(self.log, encoding="utf-8", errors="replace") as f:
            f.seek(self.log_start)
            lines = [line.strip() for line in f.read()[-5000:].splitlines() if line.strip()]
        if code < 0:
            return f"died of {signal.Signals(-code).name}"
        words = lines[-1][:200] if lines else "stderr is empty"
        return f"died ({code}): {words}"


def listen(child, left, deadline, row_limit, add):
    """
    Pass the rows of a child to add(measurement, row, figures) until it ends. left: names of its
    measurements; complete ones are removed. -> None, or why the child was cut off
    """
    begun = time.monotonic()
    while True:
        limit = min(deadline, begun + row_limit)
        try:
            message = child.next(limit - time.monotonic())
        except queue.Empty:
            return f"took longer than {time.monotonic() - begun:.0f} s"
        if message is None:
            return child.last_words() if left else None
        if "begins" in message:
            begun = time.monotonic()
        elif "row" in message:
            add(left[0], message["row"], message["figures"])
        else:
            left.remove(message["ended"])


def measure_part(command, names, log, deadline, row_limit, add):
    """
    Measure all `names` in child processes. A measurement that dies, or takes more than row_limit
    seconds, becomes a row that says so, and a new process continues after it. command(names): the
    command line of a child; deadline: when to stop, by time.monotonic().
    """
    left = list(names)
    while left:
        if time.monotonic() > deadline:
            for name in left:
                add(name, name, {"note": "not measured: no time was left"})
            return
        child = Child(command(left), log)
        try:
            why = listen(child, left, deadline, row_limit, add)
        finally:
            kill_family(child.process)
        if why is not None and left:
            add(left[0], left[0], {"note": why})
            left.pop(0)
