"""Facts about torch.compile: it changes the speed only, and where it fails training goes on."""
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from small_runs import ROOT, TINY
from torch.nn.parallel import DistributedDataParallel as DDP

import train_gpt2
from train_gpt2 import GPT, GPTConfig


def needs_a_compiler():
    import torch._inductor.cpp_builder as cpp_builder
    try:
        cpp_builder.get_cpp_compiler()
    except Exception as e:
        pytest.skip(f"torch.compile needs a C++ compiler here: {e}")


def test_nothing_is_compiled_after_the_first_step(train, monkeypatch):
    """The compiled model sees one shape only: evals, samples and HellaSwag go through the plain one."""
    needs_a_compiler()
    from torch._dynamo.utils import counters
    item = {"ctx": "The cat", "endings": ["sat down on it.", "sat.", "ran away from all that.", "is"], "label": 0}
    monkeypatch.setattr(train_gpt2.hellaswag, "prepare", lambda: None)
    monkeypatch.setattr(train_gpt2.hellaswag, "load_examples", lambda: [item] * 3)
    torch._dynamo.reset()
    counters.clear()
    log = train("log", "--compile", "--max_steps=4", "--eval_every=2", "--hellaswag", "--tokenizer=gpt2", "--n_embd=16")
    assert list(log["hella"]) == [0, 2, 4] and counters["stats"]["unique_graphs"] == 1


def test_compiled_steps_are_those_of_plain_python(train):
    """Compiling changes the speed only: the losses agree to float32's rounding."""
    needs_a_compiler()
    plain, compiled = train("plain", "--max_steps=5"), train("compiled", "--compile", "--max_steps=5")
    assert all(abs(plain["train"][s] - compiled["train"][s]) < 1e-4 for s in range(5))


def test_where_compiling_fails_training_goes_on(train, monkeypatch, capsys):
    """No C++ compiler, no Triton: one warning, and the same losses without it."""
    def compile_nothing(module):
        def forward(*args):
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")
        monkeypatch.setattr(broken := GPT(module.config), "forward", forward)
        return broken
    plain = train("plain", "--max_steps=3")
    monkeypatch.setattr(torch, "compile", compile_nothing)
    capsys.readouterr()
    broken = train("broken", "--max_steps=3", "--compile")
    assert capsys.readouterr().out.count("going on without torch.compile") == 1
    assert plain["train"] == broken["train"]


def test_a_cache_that_cannot_be_written(text, tmp_path):
    """A read-only disk: PyTorch ended there, even if nothing was compiled. In a process that has not begun."""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}", "--max_steps=2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path,
                            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(text / "cache")})
    assert result.returncode == 0 and result.stderr == ""
    assert f"TORCHINDUCTOR_CACHE_DIR={text / 'cache'} cannot be written" in result.stdout


def test_ddp_cuts_compiled_code_at_each_part_of_the_loss():
    """
    It counts the head's weight again for each part, so four parts are three graphs more than one. That costs a sum of
    gradients, and is why there are few parts; but one product for all rows would take more memory: see mean_loss.
    """
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        counts = []
        for B in (1, 4):  # a part has 1,024 rows or more
            graphs.clear()
            torch._dynamo.reset()
            model = GPT(GPTConfig(vocab_size=10240, n_layer=1, n_head=1, n_embd=32))
            x = torch.zeros(B, 1024, dtype=torch.long)
            # a bucket that the head fills, as that of 124M fills one of 25 MB
            DDP(torch.compile(model, backend=backend), bucket_cap_mb=1.05)(x, x)
            counts.append(len(graphs))
    finally:
        dist.destroy_process_group()
        torch._dynamo.reset()
    assert counts[1] - counts[0] == 3, counts
