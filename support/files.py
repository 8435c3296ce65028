"""
Files that are complete or absent. Come here when a file is half written, or when two programs wrote
to one directory.
"""
import contextlib
import errno
import json
import os

from filelock import FileLock, Timeout

from support.console import UserError, print_here


ASSETS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "assets")
MARK = ".tmp-gpt2-"  # in the name of a file that is being written; the process number follows
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # what NFS and FUSE may answer


@contextlib.contextmanager
def atomic_write(path, mode="wb", **kwargs):
    """
    open(path, mode) for writing, except that the file at `path` changes only once everything is
    written: the bytes go to a temporary file, are flushed to the disk, and the file is renamed,
    which is a single step for the file system. After a crash the old file is still there.
    """
    temporary = f"{path}{MARK}{os.getpid()}"
    try:
        with open(temporary, mode, **kwargs) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # otherwise the rename can reach the disk before the bytes do
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def check_replaceable(path, mark):
    """
    UserError if there is a file at `path` without `mark` (str), which a program writes into all its
    output: only a former output is replaced, no file that a person has made.
    """
    if os.path.isfile(path):
        with open(path, "rb") as f:
            data = f.read()
        if data and mark.encode() not in data:
            raise UserError(f"{path} is there already, and not written by this program: choose "
                            "another name with --out")


def remove_half_written(folder, is_ours):
    """
    Delete the temporary files that killed processes left in a folder: each may be as large as a
    checkpoint. Only files with a name that atomic_write makes are deleted, if is_ours(name) is true
    and the process is gone. Raises OSError.
    """
    for entry in os.listdir(folder):
        name, mark, pid = entry.rpartition(MARK)
        if mark and pid.isdecimal() and is_ours(name):
            # in a container this process can have the number of the killed one
            if int(pid) == os.getpid() or not is_running(int(pid)):
                os.remove(os.path.join(folder, entry))


def is_running(pid):
    """Does a process with this number exist on this machine?"""
    try:
        os.kill(pid, 0)  # sends no signal, only checks
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def lock_directory(folder, advice, name=".lock"):
    """
    Make this process the only one that writes to a folder -> FileLock, held until it is released or
    the process ends, however it ends. If another process holds the lock: a UserError that ends with
    `advice`. On a file system without locks: a warning. name: programs that write different files
    to one folder use different locks. Raises OSError if the folder cannot be written.
    """
    lock = FileLock(os.path.join(folder, name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is writing to {folder}: {advice}", who="me")
    except (OSError, NotImplementedError) as e:  # for ENOSYS filelock raises the latter
        if isinstance(e, OSError) and e.errno not in NO_LOCKS:
            raise
        print_here(f"warning: {folder} is on a file system without locks: if two runs write to it, "
                   "neither will notice")
    return lock


def read_json(path):
    """The contents of a .json file. Raises OSError, or ValueError if it is not JSON in UTF-8."""
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def asset(name):
    """The path of a file in assets/, which comes with the repository."""
    return os.path.join(ASSETS, name)
