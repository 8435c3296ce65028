"""
The record of a run: log.txt with its lines `step stream value`, settings.json, and the same for
TensorBoard. Come here when a line is missing or stands twice, or to read a log with a program.
"""
import contextlib
import errno
import json
import os
import re
import shutil
import time
from dataclasses import dataclass, field

from filelock import FileLock

from support import identity
from support.checkpoints import checkpoint_step, is_checkpoint, list_all
from support.console import UserError, print0
from support.files import atomic_write, lock_directory, read_json, remove_half_written


PROGRAM = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def is_ours(name):
    """Does a run write a file of this name into its log_dir? Any other file is somebody else's."""
    events = re.match(r"events\.out\.tfevents\.\d+\.", name)  # TensorBoard's
    return name in ("log.txt", "settings.json") or bool(events) or is_checkpoint(name)


@dataclass
class RunLog:
    """
    An open log. One process writes, the others have a log without a path, which writes nothing.
    """
    path: str = ""
    lock: FileLock | None = None  # held while this object lives: one run in a log directory
    events: object = None  # TensorBoard's SummaryWriter, if asked for
    waiting: list = field(default_factory=list)  # lines that a full disk has refused so far
    settings: dict = field(default_factory=dict)  # what settings.json holds
    began: float = field(default_factory=time.time)

    def write(self, step, **streams):
        """
        Append a line `step stream value` for each stream. What a full disk refuses waits, and
        training goes on.
        """
        if not self.path:
            return
        self.waiting += [f"{step} {stream} {value}\n" for stream, value in streams.items()]
        try:
            if self.lock and not os.path.exists(self.lock.lock_file):
                self.make_again()
            if self.events:
                for stream, value in streams.items():
                    self.events.add_scalar(stream, float(value), step)
                # it would write every two minutes, and not at all when the process is killed
                self.events.flush()
            append(self.path, "".join(self.waiting).encode())
            self.waiting.clear()
        except OSError as e:
            print0(f"warning: {self.path} cannot be written ({e.strerror}): {len(self.waiting)} "
                  "lines wait")

    def close(self):
        """Let other runs write to this directory, also while this process goes on."""
        if self.events:
            self.events.close()
        if self.lock:
            self.lock.release()

    def make_again(self):
        """
        Somebody has deleted the log directory, and with it the lock that keeps other runs away.
        What comes from now on is kept. Raises OSError.
        """
        log_dir = os.path.dirname(self.path)
        os.makedirs(log_dir, exist_ok=True)
        self.lock.release()
        self.lock = lock_directory(log_dir, "a run that has begun before writes there, too")
        write_settings(log_dir, self.settings)
        if self.events:
            self.events = type(self.events)(log_dir)
        print0(f"warning: {log_dir} was deleted: it is made again, without the lines and the "
               "checkpoints of earlier steps")


def write_settings(log_dir, settings):
    """settings.json"""
    with atomic_write(os.path.join(log_dir, "settings.json"), "w", encoding="utf-8") as f:
        json.dump(settings, f, indent=2)


def append(path, data):
    """Add bytes to the end of a file: all of them, or none and an OSError."""
    with open(path, "ab", buffering=0) as f:
        end = f.tell()
        if f.write(data) < len(data):
            f.truncate(end)  # no half lines
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_log(log_dir, data, settings, checkpoint, tensorboard):
    """
    Prepare log_dir -> RunLog. A run that goes on from a checkpoint (dict) in log_dir goes on in its
    log; any other one moves aside what it finds there. A directory that another process is writing
    to, or that is data (a path, or ""), is refused.
    """
    check_log_dir(log_dir, data)
    path = os.path.join(log_dir, "log.txt")
    first_step = checkpoint["step"] if checkpoint else 0
    advice = "choose another place with --log_dir"
    writer = tensorboard_writer() if tensorboard else None  # before anything is moved
    try:
        os.makedirs(log_dir, exist_ok=True)
        lock = lock_directory(log_dir, advice)
        remove_half_written(log_dir, is_ours)
        goes_on = identity.goes_on(checkpoint, log_dir) or identity.is_restart(log_dir)
        if goes_on:
            move_branch_aside(log_dir, first_step)
            drop_lines(path, first_step)
        else:
            move_aside(log_dir)
        settings = {**settings, "launch": identity.launch()}
        write_settings(log_dir, settings)
        events = None
        if writer:  # what will come again counts no more
            events = writer(log_dir, purge_step=first_step if goes_on else None)
    except OSError as e:
        raise UserError(f"cannot write to {log_dir} ({e.strerror}): {advice}", who="me")
    return RunLog(path, lock, events, settings=settings)


def check_log_dir(log_dir, data):
    """UserError if log_dir is a folder for something else, or has what only looks like a log."""
    folders = {"the data": data or log_dir + "/data", "the program": PROGRAM,
               "a home": os.path.expanduser("~")}
    for what, folder in folders.items():
        if os.path.realpath(log_dir) == os.path.realpath(folder):
            raise UserError(f"--log_dir={log_dir} is the folder of {what}: choose one for the run, "
                            "as --log_dir=log", who="me")
    at_home = os.path.realpath(os.path.dirname(data)) == os.path.realpath(log_dir)
    if at_home and is_ours(os.path.basename(data)):
        raise UserError(f"--data_root={data} has the name of a file that a run writes there: "
                        "choose another --log_dir", who="me")
    if not os.path.isdir(log_dir):
        return
    for name in filter(is_ours, os.listdir(log_dir)):
        path = os.path.join(log_dir, name)
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would keep us waiting
            raise UserError(f"{path} is no file: move it away, or choose another place with "
                            "--log_dir", who="me")


def tensorboard_writer():
    """The class SummaryWriter, or one line where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package that is not here: pip install tensorboard, "
                        "or leave the flag out",
                        who="me")
    return SummaryWriter


def move_aside(log_dir):
    """The files of another run, if there are any, into a directory of their own. Others stay."""
    names = [name for name in os.listdir(log_dir)
             if is_ours(name) and os.path.isfile(os.path.join(log_dir, name))]
    if names:
        aside = make_aside(log_dir)
        for name in names:
            os.replace(os.path.join(log_dir, name), os.path.join(aside, name))
        print0(f"{log_dir} held another run: its files are in {aside} now")


def make_aside(log_dir):
    """A new directory in log_dir for what is moved aside -> its path"""
    aside = os.path.join(log_dir, f"old_{time.time_ns() // 1000}")
    os.mkdir(aside)
    return aside


def move_branch_aside(log_dir, step):
    """
    A run that goes back to an earlier step: its newer checkpoints, and a copy of its log, into a
    directory of their own. Otherwise --resume=auto would take up the branch that was left.
    """
    newer = [path for path in list_all(log_dir) if checkpoint_step(os.path.basename(path)) > step]
    if not newer:
        return
    aside = make_aside(log_dir)
    for name in ("log.txt", "settings.json"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(os.path.join(log_dir, name), aside)
    for path in reversed(newer):  # if we are killed, the newest that is left is older
        os.replace(path, os.path.join(aside, os.path.basename(path)))
    print0(f"going back to step {step}: the {len(newer)} newer checkpoint(s) of {log_dir} and a "
           f"copy of its log are in {aside} now")


def drop_lines(path, step):
    """Take the lines from a step on, which will come again, out of a log.txt, if there is one."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            # somebody's note stays; half a line of ours, at the end, goes
            half = line[0].isdecimal() and not line.endswith("\n")
            found = read_line(line)
            comes_again = found is not None and found[0] >= step
            if not half and not comes_again:
                kept.append(line)
    if kept and not kept[-1].endswith("\n"):
        kept.append("\n")
    with atomic_write(path, "w", encoding="utf-8", errors="surrogateescape") as f:
        f.writelines(kept)


def read_line(line):
    """A line of log.txt -> step, stream, value; None if it is another one"""
    parts = line.split(" ")
    if len(parts) != 3 or not parts[0].isdecimal() or not line.endswith("\n"):
        return None
    try:
        return int(parts[0]), parts[1], float(parts[2])
    except ValueError:
        return None


def read_log(path):
    """
    A log directory or its log.txt -> {stream: {step: value}}, the settings of the run (dict, empty
    if unknown)
    """
    is_folder = os.path.isdir(path)
    folder = path if is_folder else os.path.dirname(path)
    file = os.path.join(path, "log.txt") if is_folder else path
    if not os.path.isfile(file):
        raise UserError(f"there is no log {file}: give the directory of a run, its --log_dir")
    log = {}
    with open(file, encoding="utf-8", errors="replace") as f:
        for line in f:
            found = read_line(line)
            if found is None:
                continue  # a note, or half a line of a run that was killed
            step, stream, value = found
            # no loss is that large, and no axis reaches 1e308; nan compares with nothing
            if step < 2**48 and abs(value) < 1e30:
                # of a step that stands twice the later line counts
                log.setdefault(stream, {})[step] = value
    if not log.keys() & {"train", "val", "hella"}:
        raise UserError(f"{file} has no lines `step stream value` of the streams train, val or "
                        "hella")
    settings = {}
    with contextlib.suppress(OSError, ValueError):
        settings = read_json(os.path.join(folder, "settings.json"))
    return log, settings if isinstance(settings, dict) else {}


def find_setting(settings, section, name, default):
    """
    What settings.json (dict), which anybody may have edited, says under section and name; the
    default where that is missing or of another type.
    """
    values = settings.get(section)
    value = values.get(name) if isinstance(values, dict) else None
    return value if type(value) is type(default) else default
