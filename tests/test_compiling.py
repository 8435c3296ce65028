"""Facts about torch.compile: it changes the speed only, and where it fails training goes on."""
import os
import subprocess
import sys

import pytest
import torch
from small_runs import ROOT, TINY

import hellaswag
from support import compiling


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
    item = hellaswag.Item([1, 2], [[3, 4, 5], [6], [7, 8], [9]], 0)
    monkeypatch.setattr(hellaswag, "prepare", lambda tokenizer: None)
    monkeypatch.setattr(hellaswag, "load_items_in_all_processes", lambda tokenizer: [item] * 3)
    torch._dynamo.reset()
    counters.clear()
    log = train("log", "--compile", "--max_steps=4", "--eval_every=2", "--hellaswag")
    assert list(log["hella"]) == [0, 2, 4] and counters["stats"]["unique_graphs"] == 1


def test_compiled_steps_are_those_of_plain_python(train):
    """Compiling changes the speed only: the losses agree to float32's rounding."""
    needs_a_compiler()
    plain, compiled = train("plain", "--max_steps=5"), train("compiled", "--compile", "--max_steps=5")
    assert all(abs(plain["train"][s] - compiled["train"][s]) < 1e-4 for s in range(5))


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile fails in its first call, as it does without a C++ compiler or Triton."""
    def fail(graph, example_inputs):
        raise RuntimeError("no compiler here")
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=fail))
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def test_where_compiling_fails_training_goes_on(train, no_compiler, capsys):
    """One warning with the reason, and the same losses, to the bit, as of a run that compiles nothing."""
    plain = train("plain", "--max_steps=3", "--no-compile")
    capsys.readouterr()
    failed = train("failed", "--max_steps=3", "--compile")
    [line] = [line for line in capsys.readouterr().out.splitlines() if "without torch.compile" in line]
    assert line.startswith("warning: going on without torch.compile: BackendCompilerFailed: ")
    assert plain["train"] == failed["train"]


def test_all_processes_compile_or_none_does(train, monkeypatch, capsys):
    """Where compiling fails in another process, this one goes on without it too: DDP needs one model."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(compiling, "sum_over_processes", lambda failed: failed + 1.0)
    stances = []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    train("log", "--max_steps=1", "--compile")
    assert "going on without torch.compile: it fails in another process\n" in capsys.readouterr().out
    assert stances == ["default", "force_eager"]


def test_a_cache_that_cannot_be_written(text, tmp_path):
    """A read-only disk: PyTorch ended there, even if nothing was compiled. In a process that has not begun."""
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}", "--max_steps=2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path,
                            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(text / "cache")})
    assert result.returncode == 0 and result.stderr == ""
    assert f"TORCHINDUCTOR_CACHE_DIR={text / 'cache'} cannot be written" in result.stdout
