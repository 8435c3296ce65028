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


def test_a_contender_that_dies_is_a_row(monkeypatch, capsys):
    """On a card transformers may not fit; what was measured before it, and after it, is printed all the same."""
    from tools import bench

    @contextlib.contextmanager
    def worker(kind, *words):
        def ask(word="work"):
            if "transformers" in words:
                raise bench.Died("died with exit code 1")
            return 1.5
        yield ask
    monkeypatch.setattr(bench, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(bench, "worker", worker)
    monkeypatch.setattr(bench, "mfu_text", lambda size, seconds: "40%")
    lines = [line for other in ("transformers", "plain") for line in bench.compare_steps(bench.CUDA_SIZES[0], other)]
    assert "B=64, T=1024: transformers | died with exit code 1" in capsys.readouterr().out
    assert sum("against plain" in line for line in lines) == 2 and not any("against transformers" in x for x in lines)
    assert sum(line.startswith("| MFU, ours") for line in lines) == 2
