"""
Which run is this? Come here when a run went on from a checkpoint that you did not mean.

A run gets a number when its log is begun, and the number stands in settings.json and in each of its
checkpoints. A launch is one call of torchrun, which starts the processes again after a crash:
settings.json names the launch that wrote it, so that a restart knows whether the run in log_dir is
its own.
"""
import os
import secrets

from support.files import read_json


def goes_on(checkpoint, log_dir):
    """Does a run that resumes from a checkpoint (dict, or None) go on in the checkpoint's log?"""
    if checkpoint is None:
        return False
    folder = os.path.dirname(checkpoint["path"])
    return os.path.realpath(folder) == os.path.realpath(log_dir)


def run_number(checkpoint, log_dir):
    """-> str. A run that goes on in the same place keeps its number, any other gets a new one."""
    if goes_on(checkpoint, log_dir) and isinstance(checkpoint.get("run"), str):
        return checkpoint["run"]
    return secrets.token_hex(6)


def launch():
    """What tells this call of torchrun from another -> str, "" without torchrun"""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        # an --rdzv-id may be used again, but on one machine torchrun is our parent. (On several the
        # first process may move)
        name += f" {os.getppid()}"
    return name


def read(log_dir):
    """settings.json -> the number of the run, its launch; "" for what is not known"""
    try:
        settings = read_json(os.path.join(log_dir, "settings.json"))
    except (OSError, ValueError):
        return "", ""
    if not isinstance(settings, dict):
        return "", ""
    return settings.get("run", ""), settings.get("launch", "")


def is_restart(log_dir):
    """
    Has torchrun started this run again after a crash? A launch that died before its own log was
    begun finds another run in log_dir, and begins once more.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return attempt not in ("", "0") and read(log_dir)[1] == launch()
