"""Facts about finetune.py: how a task is put to a model, how it is trained and measured, and what is done with it."""
import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import ROOT, LiveStorages, a_process, assert_same_bits, read_log, refusal
from torch.nn import functional as F

import finetune
import play
import train_gpt2
from finetune import (SPECIAL_TOKENS, TASKS, Classify, Embed, Example, TunedGPT, TuneConfig, from_language_model,
                      shorten)
from support import tasks
from support.batch import choose_micro_batch
from support.console import UserError, missing_package
from support.hugging_face import save_tuned, transposed
from support.tokenizer import make_tokenizer
from train_gpt2 import GPT, GPTConfig

# one item a line; several endings have another length, so that rows differ
FILES = {
    "classify": [{"text": f"{'good' if i % 3 else 'bad'} play {'and so on ' * (i % 5)}", "label": int(i % 3 > 0)}
                 for i in range(40)],
    "entail": [{"premise": f"it rains {'much ' * (i % 4)}", "hypothesis": f"it is {'wet' if i % 2 else 'dry'}",
                "label": "yes" if i % 2 else "no"} for i in range(40)],
    "compare": [{"a": f"he {'goes ' * (i % 4)}", "b": "he goes", "score": float(i % 4)} for i in range(40)],
    "choose": [{"ctx": "he sat down and", "endings": ["ate", "flew off", "is red"][: 2 + i % 2], "label": i % 2}
               for i in range(40)],
    "embed": [{"query": f"number {i}", "passage": f"here we speak of {i} {'at length ' * (i % 3)}"} for i in range(40)],
}
QUICK = "--device=cpu --dtype=float32 --epochs=1 --batch=8 --max_lr=1e-3".split()


@pytest.fixture
def language_model(tmp_path):
    """The path of a checkpoint with a tiny model of characters, untrained."""
    tokenizer = make_tokenizer("char", [json.dumps(FILES), "the plays of Shakespeare, bdkmvxz"])
    torch.manual_seed(0)
    config = GPTConfig(block_size=64, vocab_size=128, n_layer=2, n_head=2, n_embd=32)
    path = tmp_path / "model_00001.pt"
    shape = {name: getattr(config, name) for name in GPTConfig.__dataclass_fields__}
    torch.save({"model": GPT(config).state_dict(), "config": shape, "tokenizer": tokenizer.spec}, path)
    return str(path)


@pytest.fixture
def tune(tmp_path, language_model):
    """tune("classify", "name", *flags) tunes the tiny model on the items above -> the directory of the run"""
    def run(task, name, *flags, items=None):
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items or FILES[task]))
        files = [f"--model={language_model}", f"--train={path}", f"--log_dir={tmp_path / name}"]
        finetune.run([task, *files, *QUICK, *flags])
        return tmp_path / name
    return run


def tuned(folder):
    """The directory of a run -> the TunedGPT and its tokenizer"""
    model, tokenizer, _ = finetune.load_tuned(str(folder))
    return model, tokenizer


def examples_of(task, folder):
    model, tokenizer = tuned(folder)
    items = tasks.read_training_items(str(folder.parent / f"{task}.jsonl"), model.task)
    return model, finetune.make_examples(items, model.task, tokenizer, model.config.block_size, "items")


# --- how a task is put to a model -----------------------------------------------------------------

def rows(task, texts):
    return TASKS[task]().rows(texts, range(100, 104))


def test_five_ways_to_write_an_input():
    """GPT-1's figure 1: 100 starts a row, 101 stands between two texts, 102 is where the answer is read."""
    a, b, c = [1, 2], [3], [4, 5, 6]
    assert rows("classify", [a]) == [[100, 1, 2, 102]]
    assert rows("entail", [a, b]) == [[100, 1, 2, 101, 3, 102]]
    assert rows("compare", [a, b]) == [[100, 1, 2, 101, 3, 102], [100, 3, 101, 1, 2, 102]]
    assert rows("choose", [a, b, c]) == [[100, 1, 2, 101, 3, 102], [100, 1, 2, 101, 4, 5, 6, 102]]
    assert rows("embed", [a, b]) == [a, b]


@pytest.mark.parametrize("task", FILES)
def test_a_long_text_is_cut_where_it_costs_least(task):
    """An end, of two texts the longer one's; of a context its beginning, since the endings follow its end."""
    long, short = list(range(30)), [90, 91]
    texts = {"classify": [long], "embed": [long, short], "choose": [long, short, [80]]}.get(task, [short, long])
    made = rows(task, TASKS[task]().truncate(texts, 16))
    assert max(map(len, made)) == 16  # as much as there is room for
    text = [i for i in made[0] if i < 30]
    assert text == (long[-len(text):] if task == "choose" else long[: len(text)])
    if task != "classify":
        assert all(any(i in row for row in made) for i in short)
    assert TASKS[task]().truncate([text[:3] for text in texts], 16) == [text[:3] for text in texts]


def test_the_longest_text_is_cut_first():
    """Two long texts end up equally long; the texts themselves stay as they are."""
    texts = [list(range(10)), list(range(9)), [1]]
    assert list(map(len, shorten(texts, 12))) == [6, 5, 1] and len(texts[0]) == 10


def test_padding_never_changes_a_score(tune):
    """A batch of one is a batch of many: for every task, to the rounding of a product in another order."""
    for task in FILES:
        model, examples = examples_of(task, tune(task, task))
        together = finetune.predict_scores(model, examples, a_process())
        for example, scores in zip(examples[-3:], together[-3:], strict=True):
            alone = finetune.predict_scores(model, [example], a_process())[0]
            assert torch.allclose(alone, scores[: len(alone)], atol=1e-5), task
            assert (scores[len(alone) :] == -torch.inf).all()  # an ending that is not there


def test_pooling_is_at_the_last_token_of_the_text():
    """Whatever stands in the padding, the score is that of the row alone."""
    model = TunedGPT(GPTConfig(16, 104, 2, 2, 32), Classify([0, 1])).eval()
    row = torch.tensor([[100, 5, 6, 102]])
    padded = torch.tensor([[100, 5, 6, 102, 103, 103, 7]])
    with torch.no_grad():
        assert torch.allclose(model(row, torch.tensor([4]))[0], model(padded, torch.tensor([4]))[0], atol=1e-6)
        assert not torch.allclose(model(row, torch.tensor([4]))[0], model(padded, torch.tensor([7]))[0], atol=1e-3)


def test_the_order_of_a_pair_does_not_matter(tune):
    """compare reads both orders, and adds: so "a like b" is as true as "b like a"."""
    model, examples = examples_of("compare", tune("compare", "run"))
    other = [Example(e.rows[::-1], e.target) for e in examples]
    assert torch.allclose(finetune.predict_scores(model, examples, a_process()),
                          finetune.predict_scores(model, other, a_process()), atol=1e-6)


def test_the_language_model_loss_is_pretrainings():
    """It is the mean over a row's text tokens, marks and padding are no targets, and only texts' tokens are rivals."""
    model = TunedGPT(GPTConfig(16, 104, 2, 2, 32), Classify([0, 1])).eval()
    ids, lengths = torch.tensor([[100, 5, 6, 7, 102], [100, 8, 102, 103, 103]]), torch.tensor([5, 3])
    with torch.no_grad():
        _, losses = model(ids, lengths, with_lm=True)
        hidden = model.hidden(ids)
        logits = hidden @ model.transformer.wte.weight[:100].T
    first = F.cross_entropy(logits[0, :3], torch.tensor([5, 6, 7]))
    second = F.cross_entropy(logits[1, :1], torch.tensor([8]))
    assert torch.allclose(losses, torch.stack([first, second]), atol=1e-6)


def test_a_later_token_counts_more_in_a_vector():
    """SGPT: the t-th token t times. The vectors have length one."""
    model = TunedGPT(GPTConfig(16, 104, 2, 2, 32), Embed()).eval()
    ids = torch.tensor([[5, 6, 7, 103]])
    with torch.no_grad():
        hidden = model.hidden(ids)
        vector, _ = model(ids, torch.tensor([3]))
    mean = (hidden[0, 0] + 2 * hidden[0, 1] + 3 * hidden[0, 2]) / 6
    assert torch.allclose(vector[0], mean / mean.norm(), atol=1e-6)


def test_what_is_right_as_well_is_no_negative():
    """Two pairs with one query: neither pushes the other's passage away, so with nothing else the loss is zero."""
    vectors = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    same, other = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0, 1], [3, 2]])
    queries, passages = vectors[:2], vectors[2:]
    assert finetune.contrastive_losses(queries, passages, same, same, 0, 0.05).tolist() == [0, 0]
    assert (finetune.contrastive_losses(queries, passages, other, other, 0, 0.05) > 0).all()


def test_a_query_finds_its_passage_among_those_of_all_processes():
    """The second of two processes has passages 2 and 3 of four: its losses are the last two of all four."""
    vectors = F.normalize(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    queries, passages, keys = vectors[:4], vectors[4:], torch.arange(8).view(4, 2)
    of_all = finetune.contrastive_losses(queries, passages, keys, keys, 0, 0.05)
    of_second = finetune.contrastive_losses(queries[2:], passages, keys[2:], keys, 2, 0.05)
    assert torch.equal(of_all[2:], of_second)
    expected = -F.log_softmax(queries @ passages.T / 0.05, dim=1).diagonal()
    assert torch.allclose(of_all, expected)


def test_new_rows_come_after_the_tokenizers(language_model):
    """What the model knew stays; pretraining's padding makes way for four new tokens; random weights know nothing."""
    pretrained, tokenizer, _ = train_gpt2.load_model(language_model)
    model = from_language_model(pretrained, tokenizer.n_vocab, Classify([0, 1]))
    n, old, new = tokenizer.n_vocab, pretrained.transformer.wte.weight, model.transformer.wte.weight
    assert new.shape == (n + len(SPECIAL_TOKENS), 32) and model.lm_head.weight is new
    assert torch.equal(new[:n], old[:n]) and not torch.equal(new[n:], old[n : n + 4])
    assert torch.equal(model.transformer.h[1].mlp.c_fc.weight, pretrained.transformer.h[1].mlp.c_fc.weight)
    model = from_language_model(pretrained, tokenizer.n_vocab, Classify([0, 1]), random_weights=True)
    assert not torch.equal(model.transformer.wte.weight[:n], old[:n])


# --- training -------------------------------------------------------------------------------------

def test_twenty_steps_are_those_of_transformers(tmp_path):
    """GPT2ForSequenceClassification from the same weights: the same losses, and the same weights in the end."""
    transformers = pytest.importorskip("transformers")
    task = Classify([0, 1, 2])
    torch.manual_seed(0)
    ours = TunedGPT(GPTConfig(16, 104, 2, 2, 32), task).train()
    shape = dict(n_positions=16, vocab_size=104, n_layer=2, n_head=2, n_embd=32, num_labels=3, pad_token_id=103)
    dropouts = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    theirs = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**shape, **dropouts)).train()

    def weights():
        return {k: w for k, w in transposed(ours.state_dict()).items() if k != "lm_head.weight"}
    theirs.load_state_dict(weights())
    config = TuneConfig(lm_weight=0.0, dropout=0.0)
    theirs_optimizer = GPT.configure_optimizers(theirs, 0.01, config.max_lr, (0.9, 0.999))
    optimizer = ours.configure_optimizers(0.01, config.max_lr, (0.9, 0.999))
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 14, (8,), generator=draw).tolist()
        rows = [[100, *torch.randint(0, 100, (n,), generator=draw).tolist(), 102] for n in lengths]
        examples = [Example([row], int(i % 3)) for i, row in enumerate(rows)]
        ids, lengths = finetune.to_tensors(examples, 103, "cpu")
        loss = finetune.example_losses(ours, task, examples, config, a_process()).mean()
        mask = torch.arange(ids.size(1)) < lengths[:, None]
        their_loss = theirs(ids, attention_mask=mask.long(), labels=torch.tensor([e.target for e in examples])).loss
        assert abs(loss.item() - their_loss.item()) < 1e-5
        for some_loss, some in ((loss, optimizer), (their_loss, theirs_optimizer)):
            some.zero_grad()
            some_loss.backward()
            some.step()
    there = theirs.state_dict()
    assert max((w - there[k]).abs().max().item() for k, w in weights().items()) < 1e-5


@pytest.mark.parametrize("task", FILES)
def test_a_task_is_learned(task, tune, tmp_path):
    """Twelve epochs of forty items: the loss falls, and val is measured at the end of each epoch."""
    flags = [] if task == "embed" else ["--lm_weight=0.1"]
    log = read_log(tune(task, "run", "--epochs=12", *flags))
    losses = [log["train"][step] for step in sorted(log["train"])]
    assert len(losses) == 54 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert len(log["val"]) == 12 and max(log["val"]) == 54


@pytest.mark.parametrize("tune_what, moved", [("head", {"score.weight"}), ("biases", {"bias", "score.weight"})])
def test_what_learns(tune_what, moved, tune, language_model):
    """A linear probe moves the head alone; BitFit the head and every bias."""
    before = train_gpt2.load_model(language_model)[2]["model"]
    model = tuned(tune("classify", "run", f"--tune={tune_what}"))[0]
    changed = {name for name, w in model.named_parameters()
               if name in before and name != "transformer.wte.weight" and not torch.equal(w, before[name])}
    assert changed == {name for name in before if name.endswith(".bias") and "bias" in moved}


def test_a_batch_in_parts_is_the_same_batch(tune):
    """B changes memory and speed only: the losses of eight at a time are those of two at a time."""
    logs = [read_log(tune("classify", f"run{B}", "--dropout=0", f"--B={B}")) for B in (8, 2)]
    assert all(abs(logs[0]["train"][step] - logs[1]["train"][step]) < 1e-5 for step in logs[0]["train"])


@pytest.mark.parametrize("task", [pytest.param("choose", marks=pytest.mark.slow), "embed"])
def test_two_processes_are_one(task, tune, tmp_path, language_model):
    """torchrun with two processes: the losses of one, to 1e-5. In embed each sees the other's negatives."""
    flags = ["--dropout=0", "--epochs=2"]
    one = read_log(tune(task, "one", *flags))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, os.path.join(ROOT, "finetune.py"), task, f"--model={language_model}",
                           f"--train={tmp_path / task}.jsonl", f"--log_dir={tmp_path / 'two'}", *QUICK, *flags],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    two = read_log(tmp_path / "two")
    assert two["train"].keys() == one["train"].keys() and len(one["train"]) == 9
    assert all(abs(one["train"][step] - two["train"][step]) < 1e-5 for step in one["train"])
    # AdamW would take the same steps with gradients of half the length: their norm tells
    assert one["norm"] == pytest.approx(two["norm"], rel=1e-4)
    assert one["val"] == pytest.approx(two["val"], abs=2e-4)


def test_the_learning_rate_ends_at_zero():
    """GPT-1: up in 0.2% of the steps, then in a straight line to zero, which no step has."""
    config = TuneConfig(max_lr=1.0, warmup=0.002)
    rates = [finetune.get_lr(step, 2000, config) for step in range(2000)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0 and max(rates) == 1.0
    assert rates[1002] == pytest.approx(0.5) and 0 < rates[-1] < 1e-3


@pytest.mark.parametrize("task, processes, B, expected", [
    ("classify", 1, None, (8, 4)), ("classify", 2, None, (8, 2)), ("classify", 8, None, (4, 1)),
    ("embed", 2, None, (16, 1)), ("classify", 1, 4, (4, 8)), ("embed", 1, 16, (16, 2))])
def test_what_a_micro_batch_holds(task, processes, B, expected):
    """On a CPU eight items; of embed all, since they are each other's negatives; always a share of the step's 32."""
    process = a_process(num_processes=processes)
    process.card = SimpleNamespace(kind="cpu", free=math.inf)
    examples = [Example([[1, 2]], 0)] * 32
    what = TASKS[task]([0, 1])
    assert choose_micro_batch(GPTConfig(), TuneConfig(B=B), what, examples, process) == expected
    process.num_processes = 5
    assert "try --batch=30" in refusal(choose_micro_batch, GPTConfig(), TuneConfig(), what, examples, process)


@pytest.mark.parametrize("flags", [dict(batch=1), dict(batch=8, B=1)])
def test_a_passage_needs_negatives(flags):
    """Alone in its micro batch it would be found whatever its vector is: a loss of zero, and nothing learned."""
    process = a_process()
    process.card = SimpleNamespace(kind="cpu", free=math.inf)
    examples = [Example([[1], [2]], None)] * 20
    assert "the other items of a micro-batch" in refusal(
        choose_micro_batch, GPTConfig(), TuneConfig(**flags), Embed(), examples, process)


@pytest.mark.parametrize("rows, expected", [(1, (16, 2)), (4, (4, 8)), (20, (1, 32))])
def test_a_micro_batch_fits_into_the_card(rows, expected):
    """124M, 512 tokens a row, 16 GB free: the more rows an item has, the fewer items. And 2 GB are too few."""
    process = a_process()
    process.card, process.dtype = SimpleNamespace(kind="cuda", free=16e9), torch.bfloat16
    examples = [Example([[1] * 512] * rows, 0)] * 32
    assert choose_micro_batch(GPTConfig(), TuneConfig(), TASKS["choose"](), examples, process) == expected
    process.card.free = 2e9
    assert "1 item(s) at a time need" in refusal(
        choose_micro_batch, GPTConfig(), TuneConfig(), TASKS["choose"](), examples, process)


@pytest.mark.parametrize("what_learns", ["all", "head", "biases"])
def test_resuming_changes_nothing(what_learns, tune, monkeypatch):
    """
    Stopped by a signal after some steps, saved, and gone on with: every weight and moment is that of one run. What
    is frozen has no moments, and none are missed.
    """
    flags = ["--epochs=2", f"--tune={what_learns}"]
    whole = tune("classify", "whole", *flags)
    get_lr = finetune.get_lr

    def stopping(step, steps, config):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return get_lr(step, steps, config)
    with monkeypatch.context() as m:
        m.setattr(finetune, "get_lr", stopping)
        parts = tune("classify", "parts", *flags)
    assert [path.name for path in parts.glob("*.pt")] == ["model_00004.pt"]
    tune("classify", "parts", *flags, "--resume=auto")
    assert_same_bits(parts / "model_00009.pt", whole / "model_00009.pt")


def test_a_stop_while_measuring_loses_nothing(tune, monkeypatch):
    """The weights are on the disk before they are measured; the resumed run measures them."""
    whole = tune("classify", "whole", "--epochs=2")
    score = finetune.predict_scores

    def stopping(*args):
        signal.raise_signal(signal.SIGTERM)
        return score(*args)
    with monkeypatch.context() as m:
        m.setattr(finetune, "predict_scores", stopping)
        parts = tune("classify", "parts", "--epochs=2")
    assert "val" not in read_log(parts) and [path.name for path in parts.glob("*.pt")] == ["model_00005.pt"]
    tune("classify", "parts", "--epochs=2", "--resume=auto")
    assert_same_bits(parts / "model_00009.pt", whole / "model_00009.pt")
    assert read_log(parts)["val"] == read_log(whole)["val"]


def test_how_often_a_run_is_saved(tune):
    """Once an epoch, or every so many steps; --keep_last says how many stay."""
    names = sorted(path.name for path in tune("classify", "a", "--epochs=3", "--keep_last=9").glob("*.pt"))
    assert names == ["model_00005.pt", "model_00010.pt", "model_00014.pt"]
    names = sorted(path.name for path in tune("classify", "b", "--save_every=2", "--keep_last=2").glob("*.pt"))
    assert names == ["model_00004.pt", "model_00005.pt"]


def test_a_checkpoint_from_before_lm_head_was_in_it(tune):
    """lm_head is tied to wte: older checkpoints have it once. They load, and their runs go on, to the bit."""
    whole = tune("classify", "whole", "--epochs=2")
    parts = tune("classify", "parts", "--epochs=2", "--save_every=4", "--keep_last=9")
    (parts / "model_00008.pt").unlink()
    (parts / "model_00009.pt").unlink()
    saved = torch.load(parts / "model_00004.pt", weights_only=True)
    head = saved["model"].pop("lm_head.weight")
    torch.save(saved, parts / "model_00004.pt")
    model, _ = tuned(parts)
    assert model.lm_head.weight is model.transformer.wte.weight and torch.equal(model.lm_head.weight, head)
    tune("classify", "parts", "--epochs=2", "--resume=auto")
    assert_same_bits(parts / "model_00009.pt", whole / "model_00009.pt")


def test_others_get_no_lm_head(tune, tmp_path):
    """transformers' model for classification has none."""
    safetensors = pytest.importorskip("safetensors.torch")
    pytest.importorskip("tokenizers")
    model, tokenizer = tuned(tune("classify", "run"))
    save_tuned(model, tmp_path / "hf", tokenizer, model.task, SPECIAL_TOKENS)
    names = set(safetensors.load_file(tmp_path / "hf" / "model.safetensors"))
    assert names == {name for name, _ in model.named_parameters()} and "lm_head.weight" not in names


def test_a_run_goes_on_with_its_own_items(tune):
    """Other items under the same name, or another task: one line."""
    run = tune("classify", "run", "--epochs=2")
    other_items, other_task = FILES["classify"][1:], "entail"
    assert "have changed since" in refusal(lambda: tune("classify", run.name, "--resume=auto", items=other_items))
    assert "is a run of classify" in refusal(lambda: tune(other_task, run.name, "--resume=auto"))
    assert "another --batch" in refusal(lambda: tune("classify", "run", "--resume=auto", "--batch=4"))
    assert "9 steps are done, --epochs=1 are 5" in refusal(lambda: tune("classify", "run", "--resume=auto"))
    other_val = run.parent / "val.jsonl"
    other_val.write_text(json.dumps({"text": "it rains", "label": 7}) + "\n")
    assert "label 7 does not occur" in refusal(lambda: tune("classify", "run", "--resume=auto", f"--val={other_val}"))


def test_a_run_goes_on_where_its_checkpoint_is(tune, tmp_path, monkeypatch, capsys):
    """--resume=PATH without --log_dir: nothing is written to tuned/. A dropout that is given now is in force."""
    monkeypatch.chdir(tmp_path)
    run = tune("classify", "run")
    capsys.readouterr()
    finetune.run(["classify", f"--resume={run}/model_00005.pt", "--epochs=2", "--dropout=0.5", "--device=cpu"])
    out = capsys.readouterr().out
    assert "changed since the checkpoint: dropout 0.1 -> 0.5" in out and out.count("dropout") == 1
    assert [path.name for path in run.glob("*.pt")] == ["model_00009.pt"] and not (tmp_path / "tuned").exists()
    assert torch.load(run / "model_00009.pt", weights_only=True)["config"]["dropout"] == 0.5


def test_an_epoch_is_saved_before_it_is_measured(tune, tmp_path, monkeypatch):
    """What fails in measuring, a full memory for example, costs nothing that was learned."""
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(finetune, "predict_scores", fail)
    assert "out of memory in measuring: try shorter texts" in refusal(lambda: tune("classify", "run"))
    assert (tmp_path / "run" / "model_00005.pt").exists()


def test_a_missing_library_is_noticed_before_training(tune, tmp_path, monkeypatch):
    """Its name in an import is not always the one to install."""
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        tune("classify", "run")
    assert "pip install scikit-learn" in missing_package(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_similarities_are_not_rounded(dtype, language_model):
    """Under autocast the matmuls of the blocks have 16 bits; the head and the contrastive loss have 32."""
    process = a_process(torch.autocast("cpu", dtype=dtype))
    for name in ("classify", "embed"):
        pretrained, tokenizer, _ = train_gpt2.load_model(language_model)
        task = TASKS[name]([0, 1])
        model = from_language_model(pretrained, tokenizer.n_vocab, task)
        seen = []
        hook = model.transformer.ln_f.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        examples = [Example([[5, 6, 7], [8, 9]][: 1 + (name == "embed")], 0, (i, 9 + i)) for i in range(4)]
        losses = finetune.example_losses(model, task, examples, TuneConfig(lm_weight=0.0), process)
        hook.remove()
        assert losses.dtype == torch.float32
        if name == "classify":
            last = seen[0][:, -1].float()
            expected = F.cross_entropy(last @ model.score.weight.T, torch.zeros(4, dtype=torch.long), reduction="none")
            assert torch.allclose(losses, expected, atol=1e-6)


def test_what_the_language_model_loss_needs():
    """12 bytes for each logit in 16 bits: themselves, in float32, log-softmax. choose_micro_batch counts on it."""
    V, tokens = 20_000, 512
    model = TunedGPT(GPTConfig(64, V + 4, 1, 2, 16), Classify([0, 1]))
    examples = [Example([torch.randint(V, (64,)).tolist()], 0) for _ in range(tokens // 64)]
    process = a_process(torch.autocast("cpu", torch.bfloat16))
    peaks = []
    for lm_weight in (0.0, 0.5):
        with LiveStorages() as live:
            losses = finetune.example_losses(model, model.task, examples, TuneConfig(lm_weight=lm_weight), process)
            losses.sum().backward()
        peaks.append(live.peak)
    assert 0.8 < (peaks[1] - peaks[0]) / (12 * tokens * V) < 1.1


def test_a_run_that_goes_on_keeps_its_model(tune, tmp_path):
    """--resume with another --model would change nothing, and the settings would name a model that was never used."""
    tune("classify", "run", "--epochs=2")
    for flags in (["--model=/no/such"], ["--random_weights"], ["--tune=head"]):
        assert "keeps its model" in refusal(lambda flags=flags: tune("classify", "run", "--resume=auto", *flags))


# --- what is said, and what is refused ------------------------------------------------------------

def test_the_baseline_is_said_first(tune, capsys):
    """The majority's share for labels, chance for endings, BM25 for a search."""
    for task, said in (("classify", "always 1 is right for"), ("choose", "a random ending is right for"),
                       ("embed", "counting words (BM25): recall@1"), ("compare", "the mean score for all")):
        capsys.readouterr()
        tune(task, task)
        out = capsys.readouterr().out
        assert said in out and out.index(said) < out.index("step     0")
        assert "a tenth of the items is kept to measure on" in out


@pytest.mark.parametrize("flags, said", [
    (["--max_lr=-1"], "max_lr"), (["--train="], "--train is empty"),
    (["--model=gone"], "there is no model gone"), (["--train=gone.jsonl"], "there is no file gone.jsonl"),
    (["--B=-1"], "--B=-1"), (["--epochs=0"], "--epochs=0: must be at least 1"),
    (["--batch=0"], "--batch=0: must be at least 1"), (["--keep_last=0"], "--keep_last=0: must be at least 1"),
    (["--dropout=1.0"], "--dropout=1.0: must be at least 0 and below 1"), (["--temperature=0.1"], "no effect"),
    (["--seed=8589934593"], "must be at most 8589934592"), (["--tune=heads"], "invalid choice: 'heads'"),
    (["--grad_clip=nan"], "--grad_clip=nan"), (["--epoch=3"], "did you mean --epochs?"),
    (["--model=TUNED"], "is tuned for classify"), (["--B=3"], "--B=3 does not divide the 8 items"),
    (["--demo"], "leave out --demo or --train"),
    (["--tune=head", "--lm_weight=0.1"], "--lm_weight has no effect on classify with --tune=head"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_wrong_flags(flags, said, tune, tmp_path):
    if "--model=TUNED" in flags:
        flags = [f"--model={tune('classify', 'tuned')}"]
    assert said in refusal(lambda: tune("classify", "run", *flags))


def test_a_batch_larger_than_the_file(tune, capsys):
    """A step has as many items as was asked for, so each is seen more often than --epochs says: a line says it."""
    log = read_log(tune("classify", "run", "--batch=180", "--B=6"))
    assert list(log["train"]) == [0] and "each is seen 5 times, not 1" in capsys.readouterr().out


def test_a_text_that_the_tokenizer_does_not_know_is_named(tune):
    """A tokenizer of characters has those of its text: the line that has another one is named."""
    items = [*FILES["classify"][:30], {"text": "\u4f60\u597d", "label": 1}]
    assert ", line 31: this character tokenizer has no" in refusal(lambda: tune("classify", "run", items=items))


def test_a_long_text_is_counted(tune, capsys):
    """How many were cut is one line; a text that fits is not among them."""
    items = [{"text": "it rains " * (1 + 20 * (i % 4 == 0)), "label": i % 2} for i in range(40)]
    tune("classify", "run", items=items)
    assert "of 36 items are longer than the model's context of 64 tokens" in capsys.readouterr().out


def test_a_checkpoint_that_does_not_fit_together(tune):
    """Fewer rows than its tokenizer has tokens: one line, and no index that is out of range, on a GPU least of all."""
    run = tune("classify", "run")
    saved = torch.load(run / "model_00005.pt", weights_only=True)
    tokenizer = make_tokenizer("char", ["".join(map(chr, range(32, 127)))])
    torch.save({**saved, "tokenizer": tokenizer.spec}, run / "model_00005.pt")
    assert "do not belong together" in refusal(finetune.load_tuned, str(run))


def test_where_answers_go_is_asked_first(tune, tmp_path, monkeypatch):
    """Nothing is computed for a file that could not be written."""
    run = tune("classify", "run")
    monkeypatch.setattr(finetune, "predict_scores", None)
    items = str(tmp_path / "classify.jsonl")
    for out, said in ((tmp_path / "gone" / "a.jsonl", "cannot be written"), (items, "is there already")):
        assert said in refusal(finetune.run, ["predict", str(run), items, f"--out={out}"])


def test_a_runs_directory_is_a_model(language_model, capsys):
    """Its newest checkpoint, for play.py as for finetune.py."""
    play.main(["info", os.path.dirname(language_model)])
    play.main(["sample", os.path.dirname(language_model), "he", "--max_new_tokens=2", "--device=cpu"])
    assert "2 blocks, 2 heads" in capsys.readouterr().out


def test_commands(language_model, tune, tmp_path):
    """Each wrong command line is one line that says what is right."""
    assert "there is no task dance" in refusal(finetune.run, ["dance"])
    assert "name a task first" in refusal(finetune.run, [])
    assert "nothing to learn from" in refusal(finetune.run, ["classify", f"--model={language_model}"])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(item) + "\n" for item in FILES["classify"]))
    assert "--model is missing" in refusal(finetune.run, ["classify", f"--train={tmp_path / 'train.jsonl'}"])
    run = tune("classify", "run")
    items = str(tmp_path / "entail.jsonl")
    (tmp_path / "entail.jsonl").write_text(json.dumps(FILES["entail"][0]) + "\n")
    assert "is a language model" in refusal(finetune.run, ["predict", language_model, items])
    assert 'line 1: "text" is missing' in refusal(finetune.run, ["predict", str(run), items])
    assert "needs a tuned model and a file" in refusal(finetune.run, ["predict", str(run)])
    items = str(tmp_path / "classify.jsonl")
    assert "are a .jsonl file" in refusal(finetune.run, ["predict", str(run), items, "--out=x.npy"])
    assert "is tuned for classify" in refusal(play.main, ["sample", str(run / "model_00005.pt"), "x"])
    assert "search needs a model that was tuned for embed" in refusal(finetune.run, ["search", str(run), items, "x"])
    for flag, said in (("--tune=head", "embed has no head"), ("--lm_weight=0.1", "--lm_weight has no effect on embed"),
                       ("--temperature=0", "--temperature=0.0: must be at least 0.0001")):
        assert said in refusal(lambda flag=flag: tune("embed", "run2", flag))
    for flag in ("--resume", "--init_from"):
        assert "is tuned for " in refusal(train_gpt2.run, [f"{flag}={run}/model_00005.pt", "--device=cpu"])
    embedder = str(tune("embed", "run3"))
    for question in ("", " ", "\udcff"):
        assert "the question " in refusal(finetune.run, ["search", embedder, str(tmp_path / "embed.jsonl"), question])
    passages = tmp_path / "passages.jsonl"
    passages.write_text('{"passage": "he"}\n\n{"passage": "\u4f60"}\n', encoding="utf-8")
    assert "passages.jsonl, line 3: this character" in refusal(finetune.run, ["search", embedder, str(passages), "he"])


@pytest.mark.parametrize("task", ["classify", "embed", pytest.param("choose", marks=pytest.mark.slow)])
def test_the_demo_needs_nothing(task, tmp_path, monkeypatch, capsys):
    """Offline, without a model: it says that weights are random; with a checkpoint in log/ it takes that."""
    monkeypatch.chdir(tmp_path)
    some = tasks.demo_entries(task)[::70]
    monkeypatch.setattr(tasks, "demo_entries", lambda name: some)
    finetune.run([task, "--demo", *QUICK])
    out = capsys.readouterr().out
    assert "a model of the laptop's shape with random weights" in out
    assert (tmp_path / "tuned" / "log.txt").exists()
    # its last line can be pasted: it writes a file, then asks the model
    line = out.splitlines()[-1].removeprefix("next: ")
    line = line.replace("python finetune.py", f"{sys.executable} {ROOT}/finetune.py")
    result = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert ("A friend." in result.stdout if task == "embed" else (tmp_path / "answers.jsonl").exists()), line


# --- a tuned model at work ------------------------------------------------------------------------

@pytest.mark.parametrize("task", FILES)
def test_predict(task, tune, tmp_path):
    """An answer for each item, with the scores beside it; of embed, the vectors. The items need no labels."""
    run = tune(task, "run")
    items = [{k: v for k, v in item.items() if k not in ("label", "score")} for item in FILES[task]]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    out = tmp_path / ("answers.npy" if task == "embed" else "answers.jsonl")
    finetune.run(["predict", str(run), str(tmp_path / "items.jsonl"), f"--out={out}", *QUICK[:2]])
    if task == "embed":
        vectors = np.load(out)
        assert vectors.shape == (40, 2, 32) and np.allclose((vectors**2).sum(-1), 1, atol=1e-5)
        return
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{k: a[k] for k in items[0]} for a in answers] == items
    for item, answer in zip(FILES[task], answers, strict=True):
        if task == "compare":
            assert isinstance(answer["prediction"], float)
            continue
        scores = answer["prediction_scores"]
        if task == "choose":
            scores = dict(enumerate(scores))
            assert len(scores) == len(item["endings"])
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert str(answer["prediction"]) == str(max(scores, key=scores.get))


def test_predict_answers_the_good_lines_and_names_the_others(tune, tmp_path, capsys):
    """Exit code 1. A field `label` of the user stays as it was, and the answers never replace the items."""
    run = tune("classify", "run")
    good = {"text": "good play", "label": "mine", "scores": 5}
    answered = {"text": "good play", "prediction": "mine"}
    lines = [json.dumps(good), "{", json.dumps({"text": 7}), json.dumps(answered), "", "\ufeff" + json.dumps(good)]
    (tmp_path / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    argv = ["predict", str(run), str(tmp_path / "items.jsonl"), f"--out={tmp_path / 'out.jsonl'}", "--device=cpu"]
    capsys.readouterr()
    with pytest.raises(UserError) as caught:
        finetune.run(argv)
    assert caught.value.exit_code == 1 and "3 line(s) could not be read" in str(caught.value)
    out = capsys.readouterr().out
    assert "line 2: not JSON" in out and 'line 3: "text" is not a text' in out
    assert 'line 4: "prediction" is there already' in out
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(answers) == 2 and all(good.items() <= answer.items() for answer in answers)
    assert "is there already" in refusal(finetune.run, argv)


def test_the_words_of_predict_stand_anywhere(tune, tmp_path):
    """Before, between and after the flags; `--flag value` is `--flag=value`."""
    run, items = str(tune("classify", "run")), str(tmp_path / "classify.jsonl")
    a, b, c = (str(tmp_path / f"{name}.jsonl") for name in "abc")
    finetune.run(["predict", run, items, f"--out={a}", "--device=cpu"])
    finetune.run(["predict", "--device", "cpu", run, "--out", b, items])
    finetune.run(["predict", "--out", c, "--device=cpu", run, items])
    assert open(a).read() == open(b).read() == open(c).read() != ""
    assert "needs a tuned model and a file" in refusal(finetune.run, ["predict"])


def test_search(tune, tmp_path, language_model, capsys):
    """A passage is its own best match, with a tuned model and with one that was never tuned."""
    passages = [f"passage {i} of {'words ' * (i % 3)}{i * i}" for i in range(20)]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps({"passage": p}) + "\n" for p in passages))
    for model in (tune("embed", "run"), language_model):
        capsys.readouterr()
        finetune.run(["search", str(model), str(tmp_path / "passages.jsonl"), passages[7], "--top=3", "--device=cpu",
                   "--dtype=float32"])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 and lines[0].startswith("1.000") and passages[7] in lines[0]
    # as in play.py, the question may be in a file
    (tmp_path / "question.txt").write_text(passages[5] + "\n")
    finetune.run(["search", str(model), str(tmp_path / "passages.jsonl"), f"@{tmp_path}/question.txt", "--device=cpu"])
    assert capsys.readouterr().out.startswith(f"1.000  {passages[5]}\n")


@pytest.mark.slow
def test_two_processes_search(tmp_path, language_model):
    """torchrun finetune.py search: the first process prints, and nobody ends in a traceback."""
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps({"passage": f"passage {i}"}) + "\n" for i in range(9)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, os.path.join(ROOT, "finetune.py"), "search", str(language_model),
                           str(tmp_path / "passages.jsonl"), "passage 7", "--top=3", "--device=cpu"],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 and done.stdout.startswith("1.000  passage 7\n")


@pytest.mark.parametrize("task", ["classify", "entail"])
def test_transformers_gives_the_same_logits(task, tune, tmp_path):
    """From the texts alone: the exported tokenizer writes start, delimiter and extract where we do."""
    transformers = pytest.importorskip("transformers")
    run = tune(task, "run")
    play.main(["export", str(run), str(tmp_path / "hf")])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model, examples = examples_of(task, run)
    ours = finetune.predict_scores(model, examples, a_process())
    texts = [[item[name] for name in model.task.entries] for item in FILES[task]]
    n_vocab = len(tokenizer) - len(SPECIAL_TOKENS)
    for lengths in ((29, 80), (80, 29), (80, 30), (30, 31), (40, 40), (41, 40), (80, 81)):
        # too long: the exported tokenizer cuts where we do, to the token
        item = [letter * n for letter, n in zip("ab", lengths, strict=True)][: len(texts[0])]
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in item]
        row, = model.task.rows(model.task.truncate(parts, 64), range(n_vocab, n_vocab + 4))
        assert tokenizer(*item, truncation=True)["input_ids"] == row
    batch = tokenizer(*map(list, zip(*texts, strict=True)), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert (ours - logits).abs().max() < 1e-5
    assert [theirs.config.id2label[i] for i in range(2)] == [str(label) for label in model.task.labels]


def test_sentence_transformers_gives_the_same_vectors(tune, tmp_path):
    """The exported folder has the pooling in it."""
    library = pytest.importorskip("sentence_transformers")
    run = tune("embed", "run")
    play.main(["export", str(run), str(tmp_path / "st")])
    theirs = library.SentenceTransformer(str(tmp_path / "st"), device="cpu")
    model, tokenizer = tuned(run)
    texts = ["number 3", "here we speak of 3 at length at length", "a " * 100]
    ours = finetune.embed_texts(model, tokenizer, texts, a_process())
    assert np.abs(ours.numpy() - theirs.encode(texts)).max() < 1e-5


def test_what_cannot_be_exported_says_so(tune, tmp_path):
    """compare reads two rows for an answer, and transformers has no such model: one line, and no directory."""
    run = tune("compare", "run")
    assert "reads several rows" in refusal(play.main, ["export", str(run), str(tmp_path / "hf")])
    assert not (tmp_path / "hf").exists()
