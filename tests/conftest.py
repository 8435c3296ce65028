"""What the tests share."""
import numpy as np
import pytest
import torch


def write_shards(folder, sizes, vocab=97, dtype=np.uint16, first=0):
    """Shards of the given sizes (the first is validation) that hold 0, 1, 2, ... modulo vocab -> all train tokens."""
    folder.mkdir(exist_ok=True)
    stream = (np.arange(first, first + sum(sizes)) % vocab).astype(dtype)
    for i, part in enumerate(np.split(stream, np.cumsum(sizes)[:-1])):
        np.save(folder / f"edufineweb_{'train' if i else 'val'}_{i:06d}.npy", part)
    return stream[sizes[0]:]


@pytest.fixture(autouse=True)
def quiet_threads():
    """Tests of tiny models are faster on one thread, and a process that has more cores gets the same sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
