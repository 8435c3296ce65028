"""
Facts about a card, the first thing to run on a rented machine: python -m pytest -m cuda. What is computed there is what
a CPU computes; it takes the memory that the estimate says; it stops, goes on and shares as it does anywhere.

Most tests run on a CPU as well, where they say little, and show that the tests themselves run.
"""
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import ROOT, TINY, a_process, items_of, random_model, read_log

import hellaswag
import play
import train_gpt2
from support import hellaswag_file
from support.arithmetic import phases, total
from tools import measure

CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
ON_A_CARD = [pytest.param("cuda", marks=CUDA)]


@pytest.fixture(autouse=True)
def as_before():
    """A run sets how float32 is multiplied; the next test should not find it."""
    precision = torch.get_float32_matmul_precision()
    torch._dynamo.reset()
    yield
    torch.set_float32_matmul_precision(precision)


def needs_a_compiler(device):
    if device == "cpu":
        import torch._inductor.cpp_builder as cpp_builder
        try:
            cpp_builder.get_cpp_compiler()
        except Exception as e:
            pytest.skip(f"torch.compile needs a C++ compiler here: {e}")


# --- the same numbers -----------------------------------------------------------------------------

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, precision, tolerance", [
    ("float32", "highest", 1e-4), ("float32", "high", 1e-3), ("bfloat16", "high", 2e-2)])
def test_ten_losses_are_those_of_a_cpu(device, dtype, precision, tolerance, train, monkeypatch):
    """In float32 to 1e-4; with TF32, which rounds factors to ten binary digits, to 1e-3; in bfloat16 to 2e-2."""
    reference = train("cpu", "--device=cpu", "--dtype=float32")
    choose = torch.set_float32_matmul_precision
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: choose(precision))
    here = train("here", f"--device={device}", f"--dtype={dtype}", "--no-compile")
    for step in range(10):
        assert here["train"][step] == pytest.approx(reference["train"][step], abs=tolerance), step


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_steps_are_those_of_plain_python(device, train):
    """Compiled code adds up in another order, and rounds otherwise: 1e-3 over ten steps, with TF32."""
    needs_a_compiler(device)
    eager = train("eager", f"--device={device}", "--no-compile")
    compiled = train("compiled", f"--device={device}", "--compile")
    for step in range(10):
        assert compiled["train"][step] == pytest.approx(eager["train"][step], abs=1e-3), step


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns(device, dtype, train):
    """float16 with its scaler, bfloat16 without: in ten steps the loss of characters falls by half a nat."""
    losses = train("log", f"--device={device}", f"--dtype={dtype}", "--no-compile")["train"]
    assert losses[9] < losses[0] - 0.5


@pytest.mark.parametrize("device", DEVICES)
def test_hellaswag_predicts_what_a_cpu_predicts(device):
    """In float32 each ending costs the same to 1e-4, so where two are not that close the answer is the same."""
    torch.set_float32_matmul_precision("highest")
    config = train_gpt2.GPTConfig(block_size=256, n_layer=2, n_head=2, n_embd=64)
    model = random_model(config)
    items = [hellaswag.tokenize_example(example) for example in items_of(60)]
    there = a_process()
    _, expected, _ = hellaswag.score(model, items, there, 512)
    there.device = torch.device(device)
    _, means, _ = hellaswag.score(model.to(device), items, there, hellaswag.BATCH_TOKENS[device])
    torch.testing.assert_close(means, expected, atol=1e-3, rtol=1e-4)
    best = expected.sort(dim=1).values
    clear = (best[:, 1] - best[:, 0]) > 1e-3
    assert clear.sum() > 50 and means.argmin(dim=1)[clear].equal(expected.argmin(dim=1)[clear])


@pytest.mark.parametrize("device", DEVICES)
def test_a_cache_writes_the_text_that_is_written_without_one(device):
    """Token by token the likeliest, to the end of the context window, from the logits of the whole text each time."""
    torch.set_float32_matmul_precision("highest")
    model = random_model(train_gpt2.GPTConfig(block_size=64, vocab_size=97, n_layer=2, n_head=2, n_embd=32)).to(device)
    idx = torch.arange(6, device=device).view(2, 3)
    with torch.no_grad():
        cached = play.generate(model, idx, 61, temperature=0)
        for _ in range(61):
            logits, _ = model(idx)
            idx = torch.cat((idx, logits[:, -1:].argmax(dim=-1)), dim=1)
    assert cached.equal(idx) and idx.device.type == device


# --- memory ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("device", ON_A_CARD)
@pytest.mark.parametrize("compiled", ["--no-compile", "--compile"])
def test_the_peak_of_each_phase_is_what_the_estimate_says(device, compiled, tmp_path, monkeypatch):
    """
    124M parameters at the largest B that fits, at most 16: the step and each eval take between 15% less and 5% more
    than the estimate, CUDA's own memory included.
    """
    check_peaks(tmp_path, monkeypatch, device, compiled, below=0.15, above=0.05)


def test_the_test_of_the_peak_runs(tmp_path, monkeypatch):
    """On a CPU, where the memory of the whole process says nothing about a card: here any peak will do."""
    shape = "--n_layer=2 --n_head=2 --n_embd=32 --block_size=64 --T=64 --B=2 --total_batch_size=128".split()
    check_peaks(tmp_path, monkeypatch, "cpu", "--no-compile", *shape, below=1.0, above=1000)


def check_peaks(tmp_path, monkeypatch, device, *flags, below, above):
    """Train for two steps with all evals, and compare the peak of each phase with the estimate."""
    measure.made_up_shards(str(tmp_path / "shards"), 2**17, 2**16)
    items = 200 if device == "cuda" else 20
    measure.write_items(str(tmp_path), items)
    monkeypatch.setattr(hellaswag_file, "NUM_ITEMS", items)
    monkeypatch.chdir(tmp_path)
    if device == "cuda":
        torch.cuda.empty_cache()  # what tests before this one have left
        free, _ = torch.cuda.mem_get_info()
        B = min(16, measure.fitting_B(train_gpt2.GPTConfig(), train_gpt2.TrainConfig(), free))
        flags = [f"--B={B}", f"--total_batch_size={B * 1024}", *flags]
    with measure.watch() as seen:
        train_gpt2.run(["--data_root=shards", f"--device={device}", "--log_dir=log", "--max_steps=2", "--eval_every=0",
                        "--warmup_steps=0", "--val_tokens=32768", "--save_every=2", *flags])
    gpt_config, config, dtype = measure.read_configs("log")
    needs = phases(gpt_config, config, 1, dtype, compiled=bool(config.compile))
    assert needs.keys() == {use.phase for use in seen.uses}
    for phase in ("step", "validation", "hellaswag"):
        ratio = seen.most(phase).taken / total(needs[phase])
        assert 1 - below <= ratio <= 1 + above, f"{phase}: {ratio:.2f} of the estimate"


# --- runs -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("first, then", [
    ("cpu", "cpu"), pytest.param("cpu", "cuda", marks=CUDA), pytest.param("cuda", "cpu", marks=CUDA)])
def test_a_checkpoint_moves_between_a_card_and_a_cpu(first, then, train, tmp_path):
    """Saved on one, resumed on the other: the losses of a run that stayed on the CPU, to TF32's 1e-3."""
    whole = train("whole")
    train("log", f"--device={first}", "--no-compile", "--save_every=5")
    (tmp_path / "log" / "model_00010.pt").unlink()
    log = train("log", f"--device={then}", "--no-compile", "--save_every=5", "--resume=auto")
    assert list(log["train"]) == list(range(10)) and (tmp_path / "log" / "model_00010.pt").exists()
    for step in range(10):
        assert log["train"][step] == pytest.approx(whole["train"][step], abs=1e-3), step


@pytest.mark.parametrize("device, flags", [
    pytest.param("cuda", "--shard", marks=CUDA), pytest.param("cuda", "--shard --offload", marks=CUDA),
    pytest.param("cuda", "--shard --offload --activation_checkpointing", marks=CUDA),
    ("cpu", "--shard --offload --activation_checkpointing")])
def test_shares_on_one_card(device, flags, tmp_path, text):
    """
    One process under torchrun, so with NCCL on a card: sharded, with weights and moments on the CPU, it takes the steps
    of a plain run, and evaluates, samples and saves.
    """
    logs = {}
    for name, more in (("plain", []), ("shares", flags.split())):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1",
                   os.path.join(ROOT, "train_gpt2.py"), *TINY, f"--data_root={text}", f"--device={device}",
                   f"--log_dir={tmp_path / name}", "--no-compile", "--eval_every=5", "--save_every=10", *more]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr[-2000:]
        assert "sample 3" in result.stdout and (tmp_path / name / "model_00010.pt").exists()
        logs[name] = read_log(tmp_path / name)
    for step in range(10):
        assert logs["shares"]["train"][step] == pytest.approx(logs["plain"]["train"][step], abs=1e-3), step
    assert logs["shares"]["val"][10] == pytest.approx(logs["plain"]["val"][10], abs=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_sigterm_ends_a_run_within_a_step_and_a_save(device, tmp_path):
    """
    Sent in the middle of a step: the step is finished and saved, and the program says itself how long both take.
    Leaving may take 20 seconds more: a card is slow to be left.
    """
    shape = "--n_layer=4 --n_head=4 --n_embd=128 --block_size=256 --T=256 --B=4 --total_batch_size=4096".split()
    command = [sys.executable, os.path.join(ROOT, "train_gpt2.py"), f"--data_root={os.path.join(ROOT, 'input.txt')}",
               "--tokenizer=char", f"--device={device}", f"--log_dir={tmp_path / 'log'}", "--max_steps=100000",
               "--eval_every=0", "--save_every=99999", "--no-hellaswag", "--no-compile", *shape]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            if line.startswith("step     3 |"):
                break
        run.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        rest = run.stdout.read()
        took = time.monotonic() - asked
    assert run.returncode == 0 and "stopped by SIGTERM" in rest, rest
    said = re.search(r"a stop on SIGTERM takes a step and a save: ([\d.]+)s", rest)
    assert took < 2 * float(said[1]) + 20 and rest.count(" | loss: ") <= 2, (took, rest)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_compiled_after_the_first_step(device, train, monkeypatch):
    """With all evals on: the compiled model sees one shape only, and a recompilation would end this run."""
    needs_a_compiler(device)
    from torch._dynamo.utils import counters
    items = [hellaswag.tokenize_example(example) for example in items_of(8)]
    monkeypatch.setattr(hellaswag, "prepare", lambda tokenizer: None)
    monkeypatch.setattr(hellaswag, "load_items_in_all_processes", lambda tokenizer: items)
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        log = train("log", f"--device={device}", "--compile", "--max_steps=4", "--eval_every=2", "--hellaswag",
                    "--tokenizer=gpt2", "--n_embd=16", "--block_size=128")
    assert list(log["hella"]) == [0, 2, 4] and counters["stats"]["unique_graphs"] == 1
