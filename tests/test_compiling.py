"""Facts about torch.compile and the kernels of attention: they change the speed only, and may fail."""
import pytest
import torch
from small_runs import a_process
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled
from torch.nn import functional as F

import hellaswag
import play
from support import compiling
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


# --- the kernels of attention ---------------------------------------------------------------------

@pytest.fixture
def with_cudnn(monkeypatch):
    """For each call of attention: may it use cuDNN's kernels, and the flash kernels?"""
    allowed = []
    attention = F.scaled_dot_product_attention

    def noted(*args, **kwargs):
        allowed.append((cudnn_sdp_enabled(), flash_sdp_enabled()))
        return attention(*args, **kwargs)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return allowed


def test_evals_and_samples_do_without_cudnns_plans(with_cudnn):
    """A new shape in each of HellaSwag's batches, and with each sampled token: none may wait for a plan."""
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    item = hellaswag.Item([7, 8], [[9, 10]] * 4, 0)
    hellaswag.evaluate(model, [item], a_process(), batch_tokens=64)
    play.generate(model, torch.zeros(1, 2, dtype=torch.long), 3)
    assert with_cudnn == [(False, True)] * 4


def test_training_may_use_cudnn(with_cudnn):
    """Between two sampled tokens, too: play.stream restores what was allowed before it yields."""
    model = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    x = torch.zeros(1, 2, dtype=torch.long)
    tokens = play.stream(model, x)
    next(tokens)
    model(x, x)
    assert with_cudnn == [(False, True), (True, True)]
