"""Facts about files: they are whole or not there."""
import errno
import fcntl
import os

import pytest
import torch

import train_gpt2
from support import checkpoints, files


def test_every_write_of_a_checkpoint_may_fail(tmp_path, monkeypatch, capsys):
    """The first write fails, then the second, ...: each time the older file stays as it was, no half file is left."""
    model = train_gpt2.GPT(train_gpt2.GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=1, n_embd=8))
    optimizer = model.configure_optimizers(0.1, 1e-3)
    path, calls = tmp_path / "model_00001.pt", [0]
    path.write_bytes(b"the older one")
    real = open

    class Disk:
        def __init__(self, f, room):
            self.f, self.room = f, room

        def __getattr__(self, name):
            return getattr(self.f, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.f.close()

        def write(self, data):
            calls[0] += 1
            if calls[0] > self.room:
                raise OSError(28, "No space left on device")
            return self.f.write(data)
    for room in range(1000):
        calls[0] = 0
        monkeypatch.setattr(files, "open", lambda *args, room=room: Disk(real(*args), room), raising=False)
        state = {"model": model, "optimizer": optimizer, "step": 1}
        if checkpoints.save(str(tmp_path), 2, state, {}, 0.1):
            break
        assert path.read_bytes() == b"the older one" and os.listdir(tmp_path) == ["model_00001.pt"]
        assert "could not be saved" in capsys.readouterr().out
    assert room > 10 and torch.load(path, weights_only=True)["step"] == 1


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_locks(answer, tmp_path, monkeypatch, capsys):
    """On a cluster there may be no other place, so a run goes on there, and says what nobody can notice any more."""
    def flock(fd, operation):
        raise OSError(answer, os.strerror(answer))
    monkeypatch.setattr(fcntl, "flock", flock)
    if answer == errno.EIO:  # this one is no lack of locks
        with pytest.raises(OSError):
            files.lock_directory(str(tmp_path), "wait")
    else:
        files.lock_directory(str(tmp_path), "wait").release()
        assert "without locks: if two runs write to it, neither will notice" in capsys.readouterr().out
