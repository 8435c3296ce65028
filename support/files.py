"""
Files that are whole or not there. Come here when a file was half written, when a damaged one was
used, or when two programs wrote to one directory.
"""
import contextlib
import errno
import json
import os
import zipfile

from filelock import FileLock, Timeout

from support.console import UserError


ASSETS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "assets")
MARK = ".tmp-gpt2-"  # in the names of files that are being written; the process's number follows


def remove_half_written(folder, is_ours):
    """
    Delete what killed processes have left half written in a folder: names that atomic_write makes,
    of files for which is_ours(name) is true, by processes that are no longer there. Raises OSError.
    """
    for entry in os.listdir(folder):
        name, mark, pid = entry.rpartition(MARK)
        if mark and pid.isdecimal() and is_ours(name):
            # in a container our number may be that of the killed process, too
            if int(pid) == os.getpid() or not is_running(int(pid)):
                os.remove(os.path.join(folder, entry))


def is_running(pid):
    """Is there a process with this number on this machine?"""
    try:
        os.kill(pid, 0)  # no signal, just the question
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


@contextlib.contextmanager
def atomic_write(path, mode="wb", **kwargs):
    """
    open(path, mode) for writing, but path changes only when everything is written: the bytes go to
    a temporary name, are flushed to the disk, and are renamed, which is one step for the file
    system. A crash leaves the old file.
    """
    temporary = f"{path}{MARK}{os.getpid()}"
    try:
        with open(temporary, mode, **kwargs) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # without it the rename can reach the disk before the data does
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def parse_json(text):
    """JSON -> what it says. ValueError for anything else, a million brackets among it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path):
    """A .json file -> what it says. Raises OSError, or ValueError for what is no JSON in UTF-8."""
    if not os.path.isfile(path):  # a pipe would keep us waiting for ever
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    with open(path, encoding="utf-8") as f:
        return parse_json(f.read())


def asset(name):
    """The path of a file that comes with the repository, in assets/. UserError if it is missing."""
    path = os.path.join(ASSETS, name)
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing, which comes with this repository: git checkout -- "
                        "assets, in its folder, or copy it from there", who="node")
    return path


def check_zip(path):
    """
    Raise ValueError or OSError unless path is a zip file, as torch.save writes it, whose checksums
    are right.
    """
    if os.path.isdir(path):
        raise ValueError("it is a directory")
    if not os.path.isfile(path):  # a pipe would keep us waiting for ever
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as z:
        # a compressed record can be a few bytes that unpack to any size; torch.save compresses
        # nothing
        for record in z.infolist():
            if record.compress_type or record.file_size > record.compress_size:
                raise ValueError("it has compressed records")
        if damaged := z.testzip():
            raise ValueError(f"{damaged} is damaged")


def lock_directory(folder, advice, name=".lock"):
    """
    Make this process the only one that writes to folder, until it ends or lets go of what is
    returned: the operating system sees to that. Where another one does, a UserError that ends in
    `advice`. Raises OSError where it cannot write. name: of the lock, for those who share a folder
    because each has files of its own in it.
    """
    lock = FileLock(os.path.join(folder, name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is writing to {folder}: {advice}", who="me")
    return lock
