"""Facts about GPT-2 in Hugging Face's files: read as they were written, and what does not fit is named."""
import json

import pytest
import torch
from small_runs import fuzz, hugging_face_model, random_model, refusal

import train_gpt2
from train_gpt2 import GPT, GPTConfig


@pytest.mark.parametrize("n_layer, n_head", [(12, 12), (24, 16), (36, 20), (48, 25)],
                         ids=["gpt2", "medium", "large", "xl"])
def test_save_and_load_is_the_identity(n_layer, n_head, tmp_path):
    """Bit for bit, in the shapes of all four GPT-2s (but for their width). The padding rows are left out."""
    model = random_model(GPTConfig(16, 128, n_layer, n_head, 2 * n_head))
    model.save_pretrained(tmp_path, n_vocab=97)
    again = GPT.from_pretrained(str(tmp_path))
    assert again.config == GPTConfig(16, 97, n_layer, n_head, 2 * n_head)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert (a[:97] if name in ("transformer.wte.weight", "lm_head.weight") else a).equal(b), name


def edit_safetensors(path, change):
    from safetensors.torch import load_file, save_file
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize("change, said", [
    (lambda w: w.pop("transformer.h.1.mlp.c_fc.bias"), 'Missing key(s) in state_dict: "transformer.h.1.mlp.c_fc.bias"'),
    (lambda w: w.pop("transformer.wte.weight"), "transformer.wte.weight"),
    (lambda w: w.update({"transformer.h.7.ln_1.bias": torch.zeros(32)}), "Unexpected key(s) in state_dict"),
    (lambda w: w.update({"transformer.ln_f.bias": torch.zeros(33)}), "size mismatch for transformer.ln_f.bias"),
    (lambda w: w["transformer.ln_f.bias"].fill_(float("nan")), "transformer.ln_f.bias has numbers that are nan"),
    (lambda w: w.update({"transformer.h.1.attn.c_proj.weight": torch.zeros(1, 1, 32, 32)}), "has 4 dimensions"),
    (lambda w: w.update({"transformer.h.1.attn.c_proj.weight": torch.zeros(())}), "size mismatch"),
    (lambda w: w.update({"transformer.ln_f.bias": torch.ones(32, dtype=torch.int8)}), "transformer.ln_f.bias is int8"),
], ids=["missing", "no embedding", "extra", "wrong shape", "NaN", "4-D", "0-D", "int8"])
def test_weights_that_do_not_fit_are_named(change, said, tmp_path, play_refuses):
    random_model().save_pretrained(tmp_path / "hf", 97)
    edit_safetensors(tmp_path / "hf" / "model.safetensors", change)
    assert said in play_refuses("info", tmp_path / "hf")


@pytest.mark.parametrize("key, value", [
    ("activation_function", "relu"), ("layer_norm_epsilon", 1e-6), ("n_layer", "2"), ("n_head", 3),
    ("scale_attn_by_inverse_layer_idx", True), ("model_type", "llama")])
def test_a_config_of_another_model_is_refused(key, value, tmp_path, play_refuses):
    """Weights alone do not make a model: with another activation the same numbers would mean something else."""
    random_model().save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, key: value}))
    assert key in play_refuses("info", tmp_path / "hf")


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("damage, said", [
    (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    (lambda d: (d / "config.json").write_text('{"model_type": "llama"}'), "model_type"),
    (lambda d: replace(d / "config.json", '"n_layer": 1', '"n_layer": 2'), "h.1."),
    (lambda d: (d / "model.safetensors").write_bytes(b"no tensors here"), "cannot load"),
    (lambda d: (d / "config.json").write_text("[" * 100_000), "cannot load"),
], ids=["no weights", "another model", "another depth", "not safetensors", "deep"])
def test_a_directory_that_is_no_gpt2_is_refused(damage, said, tmp_path, capsys):
    """One line that names it, no traceback. pytorch_model.bin, a pickle that could run anything, is never opened."""
    hugging_face_model(tmp_path, n_layer=1, n_head=2, n_embd=32, vocab_size=97, n_positions=16)
    damage(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert said in refusal(GPT.from_pretrained, str(tmp_path))


@pytest.mark.parametrize("change", [
    dict(n_layer=10**9), dict(n_embd=2**40, n_head=1), dict(vocab_size=-1), dict(n_positions="many"), dict(n_head=3),
    dict(n_layer=1.5), dict(vocab_size=10**12),
], ids=str)
def test_a_hugging_face_directory_made_to_attack(change, tmp_path):
    """Its config.json may ask for any size: nothing of that size is built."""
    train_gpt2.GPT(train_gpt2.GPTConfig(8, 16, 1, 1, 8)).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refusal(train_gpt2.load_model, str(tmp_path / "hf"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_spec.json"])
def test_mutated_hugging_face_directories(name, tmp_path):
    train_gpt2.GPT(train_gpt2.GPTConfig(8, 16, 1, 1, 8)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_spec.json").write_text(json.dumps({"name": "char", "chars": "abc"}))
    fuzz(tmp_path / name, lambda: train_gpt2.load_model(str(tmp_path)),
         lambda start: all(w.isfinite().all() for w in start["model"].values()), 150)
