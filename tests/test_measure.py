"""Facts about what the measuring programs share."""
import json
from dataclasses import replace

import pytest
import torch
from small_runs import TINY, TINY_CONFIG, random_model

import hellaswag
import train_gpt2
from support import hellaswag_file, hugging_face
from support.arithmetic import FILLED, peak
from support.run import Run
from tools import measure


def test_made_up_items_are_as_long_as_real_ones(tmp_path, monkeypatch):
    """In tokens: a third is as short as captions of films, and train_gpt2.py finds and reads them as HellaSwag's."""
    measure.write_items(str(tmp_path), 90)
    monkeypatch.setattr(hellaswag_file, "NUM_ITEMS", 90)
    examples = hellaswag_file.find_examples(download=False, data_dir=str(tmp_path / hellaswag_file.DATA_DIR))
    items = [hellaswag.tokenize_example(example) for example in examples]
    assert len(items) == 90 and {item.label for item in items} == {0, 1, 2, 3}
    short, long = items[::3], [item for i, item in enumerate(items) if i % 3 > 0]
    assert all(9 <= len(item.context) <= 53 for item in short)  # the first word may be two tokens without its space
    assert all(40 <= len(item.context) <= 111 for item in long)
    assert all(4 <= len(ending) <= 34 for item in short for ending in item.endings)


def test_a_loader_reads_made_up_shards(tmp_path):
    """Random tokens in documents, as fineweb.py would write them."""
    measure.made_up_shards(str(tmp_path), train_tokens=2**14, val_tokens=2**12)
    shard = train_gpt2.load_tokens(str(tmp_path / "edufineweb_train_000001.npy"))
    assert len(shard) == 2**14
    x, _ = train_gpt2.DataLoaderLite([shard], 2, 64).next_batch()
    assert x[0, 0] == 50256 and x.unique().numel() > 100


def test_contenders_compute_the_same_loss():
    """Ours, the plain recipe's and transformers' are one number: what differs is the time that it takes."""
    pytest.importorskip("transformers")
    model = random_model()
    theirs = measure.transformers_gpt2(TINY_CONFIG).eval()
    theirs.load_state_dict(hugging_face.transposed(model.state_dict()))
    tokens = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(0))
    x, y = tokens[:, :-1], tokens[:, 1:]
    ours, plain = (measure.compute_loss(name, model, x, y).item() for name in ("ours", "plain"))
    shifted = theirs(tokens[:, :-1]).logits
    other = torch.nn.functional.cross_entropy(shifted.flatten(0, 1), y.flatten()).item()
    assert plain == pytest.approx(ours, abs=1e-5) and other == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("name", ["eager", "plain", "transformers"])
def test_a_contender_takes_steps(name):
    """Its weights change, whoever has written it."""
    if name == "transformers":
        pytest.importorskip("transformers")
    config = train_gpt2.GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=8)
    made = []
    keep = torch.optim.AdamW.step

    def step(self, *args):
        made.append(self)
        return keep(self, *args)
    with measure.mock.patch.object(torch.optim.AdamW, "step", step):
        work = measure.contender(name, config, 1, 16)
        work()
        work()
    assert len(made) == 2 and all(p.grad.isfinite().all() for group in made[0].param_groups for p in group["params"])


def test_a_watched_run_tells_its_phases_apart(tmp_path, text):
    """What each took, in order; and afterwards train_gpt2 is as it was."""
    watched = [*measure.BETWEEN_STEPS, (Run, "log")]
    before = [getattr(module, name) for module, name in watched]
    with measure.watch() as seen:
        train_gpt2.run([*TINY, f"--data_root={text}", f"--log_dir={tmp_path / 'log'}", "--max_steps=3",
                        "--eval_every=2", "--save_every=2"])
    phases = [use.phase for use in seen.uses if use.phase != "step"]
    assert phases == ["validation", "save", "validation", "samples", "save", "validation", "samples"]
    assert len(seen.step_ends) == 3 and seen.step_ends == sorted(seen.step_ends)
    assert seen.most("validation").taken > 10**7 and seen.seconds("save") > 0 and seen.most("nothing") is None
    assert [getattr(module, name) for module, name in watched] == before


def test_the_largest_batch_that_fits():
    """The next larger power of two would not."""
    gpt_config, config = train_gpt2.GPTConfig(), train_gpt2.TrainConfig()
    for gigabytes in (8, 16, 24, 80):
        B = measure.fitting_B(gpt_config, config, gigabytes * 1e9)
        assert B == 64 or peak(gpt_config, replace(config, B=2 * B), 1)[1] > FILLED * gigabytes * 1e9
        assert peak(gpt_config, replace(config, B=B), 1)[1] <= FILLED * gigabytes * 1e9
    assert measure.fitting_B(gpt_config, config, 1e9) == 1


def test_every_kernel_of_attention_does_the_same():
    """The gradients of q, k and v agree. (A CPU has two of the four.)"""
    config = train_gpt2.GPTConfig(block_size=16, n_layer=1, n_head=2, n_embd=8)
    gradients = []
    backward = torch.Tensor.backward

    def keep(y, *args):
        gradients.append(y.detach())
        backward(y, *args)
    with measure.mock.patch.object(torch.Tensor, "backward", keep):
        for kernel in ("FLASH_ATTENTION", "MATH"):
            torch.manual_seed(0)
            measure.attention(kernel, config, 2, 16)()
    assert gradients[0].shape == (2, 2, 16, 4) and torch.allclose(*gradients, atol=1e-3 if torch.cuda.is_available()
                                                                  else 1e-5)


def test_items_can_be_read_by_anybody(tmp_path):
    """One JSON object a line, as in HellaSwag's file."""
    measure.write_items(str(tmp_path), 3)
    lines = (tmp_path / "hellaswag" / "hellaswag_val_hub.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["ctx", "endings", "label"]] * 3


def test_contenders_take_turns():
    """A B A B, after a warm-up each that is not counted."""
    calls = []
    times = measure.in_turn(2, lambda: calls.append("A"), lambda: calls.append("B"))
    assert [len(seconds) for seconds in times] == [2, 2] and "".join(calls) == "ABABAB"
