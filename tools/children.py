"""
A process that may die: it measures one thing after another, and says what it finds as lines of
JSON. Come here to see what becomes of the report when one of them runs out of memory, hangs, or is
stopped with Ctrl-C.

    {"begins": "compiled"}                          it starts to measure this
    {"row": "step", "figures": {"ms": 140.2}}       it has found this: any number of rows
    {"ended": "compiled", "seconds": 70.1}          it is done with it
"""
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time

ROW_LIMIT = 150  # seconds for one measurement


def list_processes():
    """Those that run on this machine -> {number: (who has started it, its group)}; Linux only"""
    found = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{int(entry)}/stat", encoding="utf-8", errors="replace") as f:
                state, parent, group = f.read().rpartition(")")[2].split()[:3]
            if state != "Z":  # it has ended, and nobody has asked for its exit code yet
                found[int(entry)] = (int(parent), int(group))
    return found


def family(pid):
    """
    A process, the others of its group, whoever has started them, and all that these have started:
    torchrun gives each of its processes a group of its own. -> list of numbers
    """
    processes = list_processes()
    group = [other for other, (_, its_group) in processes.items() if its_group == pid]
    found = list(dict.fromkeys([pid, *group]))
    for known in found:  # it grows meanwhile
        found += [other for other, (parent, _) in processes.items()
                  if parent == known and other not in found]
    return found


class Child:
    """A process that prints lines of JSON, with what it writes to stderr in a file."""

    def __init__(self, command, log):
        self.log = log
        self.log_start = os.path.getsize(log) if os.path.exists(log) else 0
        with open(log, "ab") as f:
            # a group of its own: Ctrl-C is for us, and we end it
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=f, text=True,
                                            errors="replace", start_new_session=True)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        """In a thread of its own, since reading has no time limit."""
        for line in self.process.stdout:
            if line.startswith("{"):  # else a library has printed it
                self.lines.put(line)
        self.lines.put(None)  # the end

    def next(self, seconds):
        """The next line as a dict; None at the end. Raises queue.Empty after so many seconds."""
        line = self.lines.get(timeout=max(0.0, seconds))
        return None if line is None else json.loads(line)

    def kill(self):
        """End it and all that it has started, and wait until they have let go of the card."""
        pids = family(self.process.pid)
        if self.process.poll() is not None:
            pids.remove(self.process.pid)  # it has ended: the number may be another one's by now
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 10
        while list_processes().keys() & set(pids) and time.monotonic() < deadline:
            time.sleep(0.05)

    def last_words(self):
        """The last line that it has written to stderr, and its exit code -> text"""
        code = self.process.wait()
        with open(self.log, encoding="utf-8", errors="replace") as f:
            f.seek(self.log_start)
            lines = [line.strip() for line in f.read()[-5000:].splitlines() if line.strip()]
        words = lines[-1][:200] if lines else "without a word"
        if code < 0:
            return f"died of {signal.Signals(-code).name}"
        return f"died ({code}): {words}"


def listen(child, left, deadline, add):
    """
    Hand the rows of a process to add(measurement, row, figures) until it ends. left: the names of
    its measurements; those that have ended are taken out. -> None, or why it was cut off
    """
    begun = time.monotonic()
    while True:
        limit = min(deadline, begun + ROW_LIMIT)
        try:
            said = child.next(limit - time.monotonic())
        except queue.Empty:
            return f"took longer than {time.monotonic() - begun:.0f} s"
        if said is None:
            return child.last_words() if left else None
        if "begins" in said:
            begun = time.monotonic()
        elif "row" in said:
            add(left[0], said["row"], said["figures"])
        else:
            left.remove(said["ended"])


def measure_part(command, names, log, deadline, add):
    """
    Measure in fresh processes until all `names` have been. What dies or hangs becomes a row, and a
    new process goes on after it. command(names): the command line of a process.
    """
    left = list(names)
    while left:
        if time.monotonic() > deadline:
            for name in left:
                add(name, name, {"note": "not measured: no time was left"})
            return
        child = Child(command(left), log)
        try:
            why = listen(child, left, deadline, add)
        finally:
            child.kill()
        if why is not None and left:
            add(left[0], left[0], {"note": why})
            left.pop(0)
