"""Facts about tools/faults.py, in its short form."""
from tools import faults


def test_a_run_killed_at_any_moment_loses_nothing(tmp_path):
    """SIGKILL twice, once during a save: in the end the same bits. (tools/faults.py does it 200 times.)"""
    assert faults.torture(str(tmp_path), kills=2, steps=100, processes=1, dtype="float32")[0] == 2
