"""
The directory of a run, --log_dir: which files in it are ours, which run they belong to, and log.txt
with its lines `step stream value`. Come here when a line is missing or appears twice, when a run
continued from a checkpoint that you did not expect, or to read a log with a program.

    log.txt          one line `step stream value` for each number, appended after each step
    settings.json    all settings, the number of the run, the launch that wrote the file, and the
                     code: commit, diff and command line
    model_00250.pt   a checkpoint after 250 steps (support/checkpoints.py)
    old_.../         files of an earlier run, moved aside: nothing is overwritten
"""
import contextlib
import errno
import json
import math
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

from filelock import FileLock

from support.console import UserError, print0
from support.files import atomic_write, lock_directory, read_json, remove_half_written


# --- the files of a run ---------------------------------------------------------------------------

def is_ours(name):
    """Does a run write files with this name into its log_dir? Other files are never touched."""
    events = re.match(r"events\.out\.tfevents\.\d+\.", name)  # TensorBoard's
    return name in ("log.txt", "settings.json") or bool(events) or is_checkpoint(name)


def is_checkpoint(name):
    """Would a run give this name to a checkpoint? Not model_best.pt or model_00003_backup.pt."""
    number = name.removeprefix("model_").removesuffix(".pt")
    if not (number.isascii() and number.isdecimal()) or int(number) == 0:
        return False
    return name == f"model_{int(number):05d}.pt"  # model_000003.pt is not ours either


def checkpoint_step(name):
    """model_00005.pt -> 5"""
    return int(name.removeprefix("model_").removesuffix(".pt"))


def list_all(log_dir):
    """The paths of the checkpoints in a log_dir, oldest first."""
    if not os.path.isdir(log_dir):
        return []
    names = [name for name in os.listdir(log_dir) if is_checkpoint(name)]
    names.sort(key=checkpoint_step)
    return [os.path.join(log_dir, name) for name in names]


# --- which run is this? ---------------------------------------------------------------------------

# A run gets a number when its log is started; settings.json and every checkpoint contain it. A
# launch is one call of torchrun, which restarts the processes after a crash. settings.json names
# the launch that wrote it, so a restarted process knows whether the run in log_dir is its own.

def continues_here(checkpoint, log_dir):
    """Is the checkpoint (dict, or None) that a run resumes from in the log_dir of that run?"""
    if checkpoint is None:
        return False
    run, _ = read_identity(log_dir)
    if run and checkpoint.get("run", run) != run:
        return False  # somebody has copied it in from another run
    folder = os.path.dirname(checkpoint["path"])
    return os.path.realpath(folder) == os.path.realpath(log_dir)


def run_number(checkpoint, log_dir):
    """-> str. A run that continues in the same log_dir keeps its number, others get a new one."""
    if continues_here(checkpoint, log_dir) and "run" in checkpoint:
        return checkpoint["run"]
    return secrets.token_hex(6)


def launch():
    """What distinguishes this call of torchrun from others -> str, "" without torchrun"""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # Two launches may have the same --rdzv-id. On one machine torchrun is the parent process,
        # and its process number tells them apart; on several, rank 0 may move to another machine.
        name += f" {os.getppid()}"
    return name


def read_identity(log_dir):
    """settings.json -> the number of the run and its launch, "" if unknown"""
    try:
        settings = read_json(os.path.join(log_dir, "settings.json"))
    except (OSError, ValueError):
        return "", ""
    return settings.get("run", ""), settings.get("launch", "")


def is_restart(log_dir):
    """
    Did torchrun restart the run in log_dir after a crash? If the launch crashed before it had
    started a log, log_dir belongs to an earlier run, and the answer is no.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return attempt not in ("", "0") and read_identity(log_dir)[1] == launch()


# --- which code is this? --------------------------------------------------------------------------

MOST_DIFF = 100_000  # characters; a longer diff is cut


def describe_code(folder=None):
    """
    The code in a folder, by default ours -> dict: commit; clean, is every file as in the commit?;
    diff, the changes since; untracked, Python files that git does not know. Empty without git, or
    where the folder is not a repository (it may lie inside another one).
    """
    folder = folder or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def git(*args):
        command = ["git", "--no-optional-locks", "-C", folder, *args]
        return subprocess.run(command, check=True, capture_output=True, timeout=10, text=True,
                              encoding="utf-8", errors="replace").stdout
    try:
        commit, top = git("rev-parse", "HEAD", "--show-toplevel").splitlines()
        if os.path.realpath(top) != os.path.realpath(folder):
            return {}
        diff = git("diff", "--no-ext-diff", "HEAD")
        untracked = git("ls-files", "--others", "--exclude-standard", "*.py").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "clean": not diff and not untracked, "diff": diff[:MOST_DIFF],
            "untracked": untracked[:100]}


# --- writing --------------------------------------------------------------------------------------

READ = ("resume", "init_from", "data_root", "model", "train", "val")  # flags for what a run reads


@dataclass
class RunLog:
    """An open log. Only one process writes; the log of the others has no path and does nothing."""
    path: str = ""
    run: str = ""  # the number of the run
    folder: os.stat_result | None = None  # of log_dir
    lock: FileLock | None = None  # held while this object lives: one run per log_dir
    events: object = None  # TensorBoard's SummaryWriter, with --tensorboard
    waiting: list = field(default_factory=list)  # lines that could not be written yet
    began: float = field(default_factory=time.time)

    def write(self, step, **streams):
        """
        Append a line `step stream value` for each stream. If the disk is full the lines wait, and
        training continues.
        """
        if not self.path:
            return
        self.waiting += [f"{step} {stream} {value}\n" for stream, value in streams.items()]
        try:
            if self.events:
                for stream, value in streams.items():
                    self.events.add_scalar(stream, float(value), step)
                # TensorBoard itself flushes every two minutes, and not at all if we are killed
                self.events.flush()
            append(self.path, "".join(self.waiting).encode())
            self.waiting.clear()
        except OSError as e:
            print0(f"warning: {self.path} cannot be written ({e.strerror}): {len(self.waiting)} "
                   "lines wait")

    def has_lost_its_directory(self):
        """Did somebody rename or delete log_dir? Another run may be writing there by now."""
        log_dir = os.path.dirname(self.path)
        try:
            if not self.path or os.path.samestat(os.stat(log_dir), self.folder):
                return False
        except FileNotFoundError:
            return True
        except OSError:  # a network disk is away
            return False
        return read_identity(log_dir)[0] != self.run

    def close(self):
        """Release the lock, so that another run may write to the directory."""
        if self.events:
            self.events.close()
        if self.lock:
            self.lock.release()


def append(path, data):
    """Append bytes to a file: all of them, or none and an OSError."""
    with open(path, "ab", buffering=0) as f:
        end = f.tell()
        if f.write(data) < len(data):
            f.truncate(end)  # no half lines
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_log(log_dir, settings, checkpoint, tensorboard):
    """
    Prepare log_dir -> RunLog. A run that resumes from a checkpoint (dict) in log_dir continues its
    log. Any other run moves the files that it finds aside. UserError if another process is writing
    to log_dir.
    """
    path = os.path.join(log_dir, "log.txt")
    first_step = checkpoint["step"] if checkpoint else 0
    advice = "choose another place with --log_dir"
    writer = tensorboard_writer() if tensorboard else None  # before any file is moved
    try:
        os.makedirs(log_dir, exist_ok=True)
        lock = lock_directory(log_dir, advice)
        remove_half_written(log_dir, is_ours)
        is_continued = continues_here(checkpoint, log_dir) or is_restart(log_dir)
        if is_continued:
            move_branch_aside(log_dir, first_step)
            drop_lines(path, first_step)
        else:
            move_aside(log_dir, settings["train_config"])
        with atomic_write(os.path.join(log_dir, "settings.json"), "w", encoding="utf-8") as f:
            command = shlex.join(["python", *sys.argv])
            json.dump({**settings, "launch": launch(), "command": command,
                       "code": describe_code()}, f, indent=2)
        events = None
        if writer:  # purge_step: TensorBoard forgets the steps that will be repeated
            events = writer(log_dir, purge_step=first_step if is_continued else None)
        return RunLog(path, settings.get("run", ""), os.stat(log_dir), lock, events)
    except OSError as e:
        raise UserError(f"cannot write to {log_dir} ({e.strerror}): {advice}", who="me")


def tensorboard_writer():
    """The class SummaryWriter. UserError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package that is not installed: pip install "
                        "tensorboard, or leave the flag out", who="me")
    return SummaryWriter


def move_aside(log_dir, flags):
    """
    Move the files of an earlier run, if there are any, into a new directory in log_dir. UserError
    if this run reads one of them: flags (dict) name it, or log_dir as the run to start from.
    """
    names = [name for name in os.listdir(log_dir)
             if is_ours(name) and os.path.isfile(os.path.join(log_dir, name))]
    if names:
        check_of_a_run(log_dir)
        moved = {os.path.realpath(os.path.join(log_dir, name)) for name in ("", *names)}
        for flag in READ:
            if flags.get(flag) and os.path.realpath(flags[flag]) in moved:
                raise UserError(f"{log_dir} holds --{flag}={flags[flag]}, and a new run would move "
                                f"it aside: try --log_dir={os.path.normpath(log_dir)}2", who="me")
        aside = make_aside(log_dir)
        for name in names:
            os.replace(os.path.join(log_dir, name), os.path.join(aside, name))
        print0(f"{log_dir} held another run: its files are in {aside} now")


def check_of_a_run(log_dir):
    """UserError if log.txt or settings.json in log_dir is a person's own: it is not moved."""
    log, settings = (os.path.join(log_dir, name) for name in ("log.txt", "settings.json"))
    strange = []
    if os.path.isfile(log):
        with open(log, encoding="utf-8", errors="replace") as f:
            lines = f.readlines()
        if lines and not any(map(read_line, lines)):
            strange.append(log)
    if os.path.isfile(settings):
        with contextlib.suppress(ValueError):
            if "train_config" not in read_json(settings):
                strange.append(settings)
    if strange:
        raise UserError(f"{strange[0]} is not of a training run: choose another --log_dir",
                        who="me")


def make_aside(log_dir):
    """Make a new directory in log_dir for files that are moved aside -> its path"""
    aside = os.path.join(log_dir, f"old_{time.time_ns() // 1000}")
    os.mkdir(aside)
    return aside


def move_branch_aside(log_dir, step):
    """
    Prepare a run that goes back to an earlier step: move the newer checkpoints, and a copy of the
    log, into a new directory. Otherwise --resume=auto would later continue the abandoned branch.
    """
    newer = [path for path in list_all(log_dir) if checkpoint_step(os.path.basename(path)) > step]
    if not newer:
        return
    aside = make_aside(log_dir)
    for name in ("log.txt", "settings.json"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(os.path.join(log_dir, name), aside)
    for path in reversed(newer):  # newest first: killed in between, the next run can repeat this
        os.replace(path, os.path.join(aside, os.path.basename(path)))
    print0(f"going back to step {step}: the {len(newer)} newer checkpoint(s) of {log_dir} and a "
           f"copy of its log are in {aside} now")


def drop_lines(path, step):
    """Remove the lines from `step` on from a log.txt: a resumed run writes them again."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            # notes that a person added stay; half a line, which a killed run left, goes
            is_half = line[0].isdecimal() and not line.endswith("\n")
            found = read_line(line)
            is_repeated = found is not None and found[0] >= step
            if not is_half and not is_repeated:
                kept.append(line)
    if kept and not kept[-1].endswith("\n"):
        kept.append("\n")
    with atomic_write(path, "w", encoding="utf-8", errors="surrogateescape") as f:
        f.writelines(kept)


# --- reading --------------------------------------------------------------------------------------

def read_line(line):
    """A line of log.txt -> step, stream, value; None for any other text"""
    parts = line.split(" ")
    if len(parts) != 3 or not parts[0].isdecimal() or not line.endswith("\n"):
        return None
    try:
        return int(parts[0]), parts[1], float(parts[2])
    except ValueError:
        return None


def read_log(path):
    """
    A log_dir or its log.txt -> {stream: {step: value}} of all finite values, and the settings of
    the run (dict, empty if there is no settings.json)
    """
    folder, file = os.path.split(path)
    if os.path.isdir(path):
        folder, file = path, "log.txt"
    file = os.path.join(folder, file)
    if not os.path.isfile(file):
        raise UserError(f"there is no log {file}: give the directory of a run, its --log_dir")
    log = {}
    with open(file, encoding="utf-8", errors="replace") as f:
        for found in map(read_line, f):
            if found is not None and math.isfinite(found[2]):
                step, stream, value = found
                log.setdefault(stream, {})[step] = value  # a step may appear twice: the later wins
    if not log.keys() & {"train", "val", "hella"}:
        raise UserError(f"{file} has no lines `step stream value` of the streams train, val or "
                        "hella")
    settings = {}
    with contextlib.suppress(OSError, ValueError):
        settings = read_json(os.path.join(folder, "settings.json"))
    return log, settings
