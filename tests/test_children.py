"""Facts about processes that measure, and may die."""
import os
import sys
import time

import pytest

from tools import children

# What a part's process could be: for each of its measurements it does what the name says.
PROGRAM = """
import json, os, signal, subprocess, sys, time
for name in sys.argv[1:]:
    print(json.dumps({"begins": name}), flush=True)
    print(json.dumps({"row": name + " begins", "figures": {"n": 1}}), flush=True)
    if name == "dies":
        sys.exit("CUDA error: an illegal memory access was encountered")
    if name == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(json.dumps({"row": "started", "figures": {"pid": other.pid}}), flush=True)
        time.sleep(600)
    print("a line of some library", flush=True)
    print(json.dumps({"row": name, "figures": {"n": 2}}), flush=True)
    print(json.dumps({"ended": name, "seconds": 0.1}), flush=True)
"""
LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see who has started whom")


@pytest.fixture
def measure(tmp_path):
    """measure(name, ..., seconds=60) -> the rows that come, as (row, figures)"""
    rows = []

    def run(*names, seconds=60, add=None):
        def keep(measurement, row, figures):
            assert measurement in names
            rows.append((row, figures))
        children.measure_part(lambda left: [sys.executable, "-c", PROGRAM, *left], names, str(tmp_path / "log"),
                              time.monotonic() + seconds, 60, add or keep)
        return rows
    return run


def test_what_dies_is_a_row_and_the_rest_is_measured(measure):
    """The row says why: the last line of the process, or its signal. The measurements after it get a new process."""
    rows = measure("one", "dies", "two", "is killed", "three")
    assert [row for row, _ in rows] == ["one begins", "one", "dies begins", "dies", "two begins", "two",
                                        "is killed begins", "is killed", "three begins", "three"]
    assert rows[3][1] == {"note": "died (1): CUDA error: an illegal memory access was encountered"}
    assert rows[7][1] == {"note": "died of SIGKILL"} and rows[9][1] == {"n": 2}


@LINUX
def test_what_hangs_is_cut_off_with_all_that_it_has_started(measure):
    """Even processes in groups of their own, as torchrun's are; what comes after it has no time any more."""
    rows = measure("hangs", "one", seconds=2)
    pid = dict(rows)["started"]["pid"]
    assert "took longer than" in dict(rows)["hangs"]["note"] and dict(rows)["one"]["note"].startswith("not measured")
    assert pid not in children.list_processes()


@LINUX
def test_ctrl_c_leaves_no_process_behind(measure):
    """Wherever it comes: here while the row is handed on that says which process there is."""
    pids = []

    def interrupted(measurement, row, figures):
        if row == "started":
            pids.extend([figures["pid"], *children.family(os.getpid())])
            raise KeyboardInterrupt
    before = children.family(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        measure("hangs", add=interrupted)
    assert pids[0] in pids[1:] and len(pids) >= len(before) + 2
    assert set(pids) & children.list_processes().keys() <= set(before)
