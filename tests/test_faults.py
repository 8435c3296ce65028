"""Facts about tools/faults.py, in its short form."""
import pytest

from tools import faults


def test_a_run_killed_at_any_moment_loses_nothing(tmp_path):
    """SIGKILL twice, once inside a checkpoint write: in the end the same bits. (tools/faults.py does it 200 times.)"""
    assert faults.torture(str(tmp_path), kills=2, steps=100, processes=1, dtype="float32")[0] == 2


@pytest.fixture
def folder(tmp_path):
    """A folder for rows that need nothing but a document."""
    for name in ("made", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "made" / "documents.jsonl").write_text('{"text": "to be or not to be"}\n' * 9)
    return str(tmp_path)


@pytest.mark.parametrize("did", ["fineweb: --shard_size=10**15, corrected", "a file called a[1].jsonl"])
def test_a_row_of_the_table(did, folder):
    """Each is a real command in an empty directory. (python tools/faults.py clumsy does them all.)"""
    [row] = [row for row in faults.ROWS if row.did == did]
    is_right, cells = faults.try_row(row, folder)
    assert is_right and cells.startswith("0 | next: python train_gpt2.py"), cells


@pytest.mark.parametrize("line, code, says", [
    ("exit 3", 2, ""),  # another exit code
    ("echo done", 0, "saved"),  # without the words
    ("echo 'Traceback (most recent call last)'; exit 2", 2, ""),
    ("echo 'a fault of this program: NameError'; exit 2", 2, "")], ids=["code", "words", "traceback", "fault"])
def test_what_is_not_as_it_should_be(line, code, says, folder):
    is_right, _ = faults.try_row(faults.Row("something", line, code, says), folder)
    assert not is_right


def test_every_row_is_about_something_else():
    assert len({row.did for row in faults.ROWS}) == len(faults.ROWS) > 60
