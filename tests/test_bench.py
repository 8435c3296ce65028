"""Facts about the bench."""
import contextlib

import pytest
import torch


def test_a_line_of_the_table():
    """Ratios are those of neighbours in time, not of the medians: what slows the machine down slows both."""
    from tools import bench
    assert bench.row("x", "tok/s", 100, [1, 2, 4], [2, 4, 6], "1.5") == (
        "| x | 50.0 tok/s | 25.0 tok/s | 2.00 (1.50 to 2.00) | 1.5 |")
    calls = []
    assert [len(t) for t in bench.in_turn(2, lambda: calls.append("A"), lambda: calls.append("B"))] == [2, 2]
    assert "".join(calls) == "ABABAB", "one warm-up each, not counted"


@pytest.mark.parametrize("device, together", [("cpu", 2), ("cuda", 1)])
def test_contenders_on_a_card_come_one_after_the_other(monkeypatch, device, together):
    """64 rows of 1,024 tokens twice do not fit into it. On a CPU they wait for each other, A B A B."""
    from tools import bench
    calls, here, most = [], [], []

    @contextlib.contextmanager
    def worker(kind, *words):
        name = words[0] if kind == "step" else kind
        here.append(name)
        most.append(len(here))
        yield lambda word="work": calls.append(name) if word == "work" else 1.5
        here.remove(name)
    monkeypatch.setattr(bench, "DEVICE", torch.device(device))
    monkeypatch.setattr(bench, "worker", worker)
    times, peaks = bench.steps_in_turn(64, 1024, 3, "ours", "products")
    assert max(most) == together and peaks == {"ours": 1.5, "products": 1.5}
    assert {name: len(seconds) for name, seconds in times.items()} == {"ours": 3, "products": 3}
    assert ("ours products ours products" in " ".join(calls)) == (device == "cpu")
