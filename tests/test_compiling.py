"""Facts about torch.compile and the kernels of attention: they change the speed only, and may fail."""
import os
import subprocess
import sys
import threading

import pytest
import torch
from small_runs import ROOT, a_process
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


class PTXASError(Exception):
    """Triton's: no RuntimeError, and raised when the compiled code is launched."""


def no_backend(real):
    """It fails in its first call, as it does without a C++ compiler or Triton."""
    def fail(graph, example_inputs):
        raise RuntimeError("no compiler here")
    return lambda model: real(model, backend=fail)


def no_launch(real):
    """All is compiled, and the GPU's assembler does not know the GPU."""
    class Launched(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, *batch):
            if torch._dynamo.eval_frame._stance.stance == "force_eager":
                return self.model(*batch)
            raise PTXASError("sm_121a is not defined")
    return Launched


def no_such_python(real):
    """It fails at once: PyTorch's versions come months after Python's."""
    def fail(model):
        raise RuntimeError("torch.compile is not supported on Python 3.99+")
    return fail


@pytest.mark.parametrize("make_compile, reason", [
    (no_backend, "BackendCompilerFailed: "), (no_launch, "PTXASError: sm_121a is not defined"),
    (no_such_python, "RuntimeError: torch.compile is not supported on Python 3.99+")])
def test_where_compiling_fails_training_goes_on(make_compile, reason, train, monkeypatch, capsys):
    """One warning with the reason, and the same losses, to the bit, as of a run that compiles nothing."""
    plain = train("plain", "--max_steps=3", "--no-compile")
    monkeypatch.setattr(torch, "compile", make_compile(torch.compile))
    capsys.readouterr()
    try:
        failed = train("failed", "--max_steps=3", "--compile")
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "without torch.compile" in line]
    assert line.startswith(f"warning: going on without torch.compile: {reason}")
    assert plain["train"] == failed["train"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_what_is_no_failure_of_compiling(error):
    """Eager code needs more memory still, and somebody who presses Ctrl-C wants an end."""
    class Model(torch.nn.Module):
        def forward(self, x, y):
            raise error
    with pytest.raises(type(error)):
        compiling.compiles_in_all_processes(Model(), 1, 1, a_process(), limit_s=1)


# two processes, one of which is late, fails or is refused; a sum waits a second at most
TWO = """
import os, sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
from small_runs import a_process
from support import batch, compiling, processes
from train_gpt2 import TrainConfig
rank, what = int(os.environ["RANK"]), sys.argv[1]
real = torch.compile
def compile(model):
    if rank == 1 and what == "refused":
        raise RuntimeError("torch.compile is not supported on Python 3.99+")
    return model  # what fails or is late here does so in forward
torch.compile = compile
class Model(torch.nn.Linear):
    def forward(self, x, y):
        if rank == 1 and what == "late":
            time.sleep(3)
        if rank == 1 and what == "fails":
            raise Exception("PTXASError")
        return None, super().forward(x.float()).sum()
card = processes.Card("cpu", torch.device("cpu"))
processes.meet(card, 60)
model = torch.nn.parallel.DistributedDataParallel(compiling.compile_model(Model(2, 2)))
processes.sum_over_processes(1)
torch.distributed.distributed_c10d._set_pg_timeout(processes.timedelta(seconds=1))  # --dist_timeout_s=1
process = a_process(rank=rank, num_processes=2)
process.card, process.compile = card, True
config = TrainConfig(B=1, T=2, total_batch_size=4, dist_timeout_s=1)
B = batch.compile_and_choose_batch(model, None, config, 1, process)
stance = torch._dynamo.eval_frame._stance.stance
sys.stdout.write(f"process {{rank}}: B {{B}}, {{stance}}, {{processes.sum_over_processes(1)}}\\n")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("what, reason", [
    ("fails", "Exception: PTXASError (process 1)"), pytest.param("late", None, marks=pytest.mark.slow),
    pytest.param("refused", "RuntimeError: torch.compile is not supported on Python 3.99+ (process 1)",
                 marks=pytest.mark.slow)])
def test_all_processes_compile_or_none_does(what, reason, tmp_path):
    """
    Where compiling fails in one process, all go on without it: DDP needs one model. Where it takes one of them longer
    than --dist_timeout_s, the other waits: its disk may be slower, or its cache empty.
    """
    (tmp_path / "two.py").write_text(TWO.format(root=ROOT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(tmp_path / "two.py"), what]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        stance = "force_eager" if reason else "default"
        assert f"process {rank}: B 1, {stance}, 2.0\n" in result.stdout
    warnings = [line for line in result.stdout.splitlines() if line.startswith("warning: ")]
    assert warnings == ([f"warning: going on without torch.compile: {reason}"] if reason else [])


def test_somebody_who_waits_for_the_compiler_knows_it(monkeypatch, capsys):
    """On a slow machine the first step can take minutes in which nothing else is printed."""
    lines, said = [], threading.Event()

    def note(line):
        lines.append(line)
        if line.startswith("still compiling after"):
            said.set()
    monkeypatch.setattr(compiling, "print0", note)
    monkeypatch.setattr(compiling, "REMIND_S", 0.001)
    with compiling.reminders():
        assert said.wait(60)
    assert lines[0].startswith("compiling: about half a minute the first time") and lines[1].endswith(" s")


# --- compiled code is kept ------------------------------------------------------------------------

@pytest.fixture
def home(tmp_path, monkeypatch):
    """A new user's, who has set no folder for compiled code."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that what a test makes of it is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_compiled_code_outlives_a_reboot(home, monkeypatch, capsys):
    """It is kept in the user's cache, not in /tmp, and the line that asks for patience names the folder."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    compiling.compile_model(torch.nn.Linear(1, 1))
    folder = str(home / ".cache" / "torch" / "inductor")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == folder and os.path.isdir(folder)
    with compiling.reminders():
        pass
    assert f"the code is kept in {folder}\n" in capsys.readouterr().out


def test_a_chosen_folder_stays(home, monkeypatch):
    """On a cluster somebody has set one on a fast disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/scratch/code")
    compiling.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/scratch/code"


def test_a_home_that_cannot_be_written_to(home, monkeypatch, capsys):
    """Compiling must not fail for want of a cache: PyTorch's own folder in /tmp will do."""
    (home / ".cache").write_text("a file where a folder should be")
    compiling.keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    with compiling.reminders():
        pass
    assert "the code is kept in a temporary folder\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_process_compiles_nothing(home, monkeypatch):
    """PyTorch finds the code that the first one left in the folder."""
    needs_a_compiler()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # importing Inductor or Dynamo sets it
    program = ("import sys, torch\n"
               f"sys.path[:0] = [{ROOT!r}]\n"
               "from support.compiling import compile_model\n"
               "model = compile_model(torch.nn.Linear(2, 2))\n"
               "from torch._dynamo.utils import counters\n"
               "model(torch.zeros(1, 2)).sum().backward()\n"
               "print(counters['aot_autograd']['autograd_cache_hit'])")
    hits = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
            for _ in range(2)]
    assert hits == ["0\n", "1\n"]


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
