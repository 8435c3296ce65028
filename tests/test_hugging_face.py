"""
Facts about GPT-2 in Hugging Face's formats: whatever transformers reads as a GPT-2 like ours is read, and everything
else is refused in one line.
"""
import json
import os

import pytest
import torch
from small_runs import fuzz, hugging_face_model, random_model, refusal

from support.hugging_face import hugging_face_tokenizer, save_pretrained
from support.tokenizer import gpt2_tokenizer, make_tokenizer, train_bpe
from train_gpt2 import GPT, GPTConfig, load_model


@pytest.mark.parametrize("n_layer, n_head", [(12, 12), (24, 16), (36, 20), (48, 25)],
                         ids=["gpt2", "medium", "large", "xl"])
def test_save_and_load_is_the_identity(n_layer, n_head, tmp_path):
    """Bit for bit, in the shapes of all four GPT-2s (but for their width). The padding rows are left out."""
    model = random_model(GPTConfig(16, 128, n_layer, n_head, 2 * n_head))
    save_pretrained(model, tmp_path, make_tokenizer("char", map(chr, range(32, 128))))  # 96 characters and the end
    again = GPT.from_pretrained(str(tmp_path))
    assert again.config == GPTConfig(16, 97, n_layer, n_head, 2 * n_head)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert (a[:97] if name in ("transformer.wte.weight", "lm_head.weight") else a).equal(b), name


def test_the_fields_that_other_programs_read(tmp_path):
    """llama.cpp's converter needs n_ctx, which transformers no longer writes by itself."""
    save_pretrained(random_model(GPTConfig(16, 128, 1, 2, 4)), tmp_path, make_tokenizer("char", "abc"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == 16
    assert config["bos_token_id"] == config["eos_token_id"] == 0 and config["vocab_size"] == 4


# --- files of all ages ----------------------------------------------------------------------------

@pytest.fixture
def theirs(tmp_path):
    """A GPT-2 of transformers, saved to tmp_path."""
    return hugging_face_model(tmp_path, n_layer=2, n_head=2, n_embd=32, vocab_size=97, n_positions=16)


def edit_weights(folder, change):
    """change(weights) edits the dict in place."""
    from safetensors.torch import load_file, save_file
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def add_masks(folder, theirs):
    """The first versions of transformers saved the causal masks, which are constants."""
    def add(weights):
        for i in range(2):
            weights[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
            weights[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    edit_weights(folder, add)


def drop_prefix(folder, theirs):
    """OpenAI's names, as in gpt2 on the hub: without "transformer." in front."""
    def drop(weights):
        for key in list(weights):
            weights[key.removeprefix("transformer.")] = weights.pop(key)
    edit_weights(folder, drop)


def write_pickle(folder, theirs):
    os.remove(folder / "model.safetensors")
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")


def write_shards(folder, theirs):
    """Large models come in several files."""
    os.remove(folder / "model.safetensors")
    theirs.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1


def write_out_n_inner(folder, theirs):
    """Usually null, which means four times the width."""
    edit_config(folder, n_inner=4 * 32)


def rename_gelu(folder, theirs):
    """One function under two names."""
    edit_config(folder, activation_function="gelu_pytorch_tanh")


@pytest.mark.parametrize("change", [add_masks, drop_prefix, write_pickle, write_shards, write_out_n_inner, rename_gelu])
def test_files_of_all_ages_are_read(change, theirs, tmp_path, capfd):
    """The same logits as from transformers' own model. Loading prints nothing, neither warnings nor a bar."""
    change(tmp_path, theirs)
    capfd.readouterr()
    ours = GPT.from_pretrained(str(tmp_path)).eval()
    assert capfd.readouterr() == ("", "")
    idx = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(idx)[0], theirs(idx).logits, atol=1e-5, rtol=1e-5)


def test_half_precision_becomes_float32(theirs, tmp_path):
    theirs.half().save_pretrained(tmp_path)
    assert {p.dtype for p in GPT.from_pretrained(str(tmp_path)).parameters()} == {torch.float32}


# --- what is refused ------------------------------------------------------------------------------

@pytest.mark.parametrize("change, said", [
    (lambda w: w.pop("transformer.h.1.mlp.c_fc.bias"), "it has no transformer.h.1.mlp.c_fc.bias"),
    (lambda w: w.pop("transformer.wte.weight"), "transformer.wte.weight"),
    (lambda w: w.update({"transformer.h.7.ln_1.bias": torch.zeros(32)}), "unknown weights transformer.h.7.ln_1.bias"),
    (lambda w: w.update({"score.weight": torch.zeros(2, 32)}), "is a classifier: load it with transformers"),
    (lambda w: w.update({"transformer.ln_f.bias": torch.zeros(33)}), "other shapes of transformer.ln_f.bias"),
    (lambda w: w["transformer.ln_f.bias"].fill_(float("nan")), "nan or infinity in transformer.ln_f.bias"),
], ids=["missing", "no embedding", "left over", "another head", "wrong shape", "nan"])
def test_weights_that_do_not_fit_are_named(change, said, theirs, tmp_path):
    edit_weights(tmp_path, change)
    assert said in refusal(GPT.from_pretrained, str(tmp_path))


@pytest.mark.parametrize("key, value", [
    ("activation_function", "relu"), ("layer_norm_epsilon", 1e-6), ("n_inner", 64),
    ("scale_attn_by_inverse_layer_idx", True), ("tie_word_embeddings", False), ("model_type", "llama"),
    ("n_layer", "2"), ("n_head", 3)])
def test_a_config_of_another_model_is_refused(key, value, theirs, tmp_path):
    """Weights alone do not make a model: with another activation the same numbers would mean something else."""
    edit_config(tmp_path, **{key: value})
    line = refusal(GPT.from_pretrained, str(tmp_path))
    assert key in line or "num_heads" in line


@pytest.mark.parametrize("damage, said", [
    (lambda d: (d / "model.safetensors").unlink(), "no file named model.safetensors"),
    (lambda d: (d / "config.json").unlink(), "Unrecognized model"),
    (lambda d: edit_config(d, n_layer=3), "it has no transformer.h.2."),
    (lambda d: (d / "model.safetensors").write_bytes(b"no tensors here"), "SafetensorError"),
], ids=["no weights", "no config", "another depth", "not safetensors"])
def test_a_directory_that_is_no_gpt2_is_refused(damage, said, theirs, tmp_path, capfd):
    damage(tmp_path)
    capfd.readouterr()
    line = refusal(GPT.from_pretrained, str(tmp_path))
    assert said in line and str(tmp_path) in line and capfd.readouterr() == ("", "")


class Attack:
    """Unpickled, it makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_runs_no_code(theirs, tmp_path):
    """pytorch_model.bin is a pickle, which could run anything: only tensors are read from it."""
    os.remove(tmp_path / "model.safetensors")
    torch.save({"transformer.wte.weight": Attack(tmp_path / "attacked")}, tmp_path / "pytorch_model.bin")
    refusal(GPT.from_pretrained, str(tmp_path))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("model_type", ["gpt2", "mine"])
def test_a_directory_runs_no_code(model_type, theirs, tmp_path, capfd):
    """A directory may bring Python files for transformers to import: they are ignored, and nobody is asked."""
    (tmp_path / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'attacked')!r})\n")
    edit_config(tmp_path, model_type=model_type, auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})
    capfd.readouterr()
    if model_type == "gpt2":
        GPT.from_pretrained(str(tmp_path))
    else:
        assert "ValueError: The repository" in refusal(GPT.from_pretrained, str(tmp_path))
    assert not (tmp_path / "attacked").exists() and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_mutated_hugging_face_directories(name, tmp_path):
    save_pretrained(GPT(GPTConfig(8, 16, 1, 1, 8)), tmp_path, make_tokenizer("char", "abc"))
    fuzz(tmp_path / name, lambda: load_model(str(tmp_path)),
         lambda loaded: all(w.isfinite().all() for w in loaded[2]["model"].values()), 150)


def test_gpt2_is_read_from_the_hubs_cache(theirs, monkeypatch, tmp_path):
    """OpenAI's models come from the hub, once; later they are in its cache."""
    import huggingface_hub
    asked = []

    def find(model, file):
        asked.append(f"{model}/{file}")
        return str(tmp_path / file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", find)
    assert GPT.from_pretrained("gpt2").config.n_embd == 32
    assert asked == ["openai-community/gpt2/config.json", "openai-community/gpt2/model.safetensors"]


# --- the tokenizer of a directory -----------------------------------------------------------------

def exchange_two_tokens(data):
    """The tokenizer.json (dict) of GPT-2, in which " the" and " of" have each other's ids"""
    vocab = data["model"]["vocab"]
    vocab["\u0120the"], vocab["\u0120of"] = vocab["\u0120of"], vocab["\u0120the"]


@pytest.fixture
def write_tokenizer(tmp_path):
    """write_tokenizer(change, files) writes GPT-2's tokenizer, changed, beside a model of as many tokens."""
    def write(change=lambda data: None, files="tokenizer.json"):
        hugging_face_model(tmp_path, n_layer=1, n_head=1, n_embd=8, vocab_size=50257, n_positions=16)
        data = json.loads(hugging_face_tokenizer(gpt2_tokenizer()).to_str())
        change(data)
        if files == "tokenizer.json":
            (tmp_path / files).write_text(json.dumps(data))
        else:
            vocab = {**data["model"]["vocab"], "<|endoftext|>": 50256}
            (tmp_path / "vocab.json").write_text(json.dumps(vocab))
            merges = [" ".join(merge) for merge in data["model"]["merges"]]
            (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    return write


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_gpt2s_tokenizer_is_recognized(files, write_tokenizer, tmp_path):
    """HellaSwag is measured with GPT-2's tokenizer only, so a copy beside a model has to count as that."""
    write_tokenizer(files=files)
    assert load_model(str(tmp_path))[1].spec == {"name": "gpt2"}


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_a_model_comes_with_its_own_tokenizer(files, write_tokenizer, tmp_path):
    """A GPT-2 in another language has as many tokens, others. Read with OpenAI's, it would be silently wrong."""
    write_tokenizer(exchange_two_tokens, files)
    _, tokenizer, saved = load_model(str(tmp_path))
    gpt2 = gpt2_tokenizer()
    assert tokenizer.encode(" the king") == [*gpt2.encode(" of"), *gpt2.encode(" king")]
    assert tokenizer.decode(tokenizer.encode(" the king")) == " the king"
    assert saved["tokenizer"] == tokenizer.spec and tokenizer.eot == 50256


def test_a_directory_without_a_tokenizer(theirs, tmp_path, capsys):
    """A line says which one is assumed; this model has fewer rows than GPT-2 has tokens, so it does not fit."""
    assert "do not belong together" in refusal(load_model, str(tmp_path))
    assert "has no tokenizer: GPT-2's is assumed" in capsys.readouterr().out


def test_a_tokenizer_that_splits_words_in_its_own_way(tmp_path):
    """Without tokenizer_config.json transformers would split words as GPT-2 does: the file decides."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    bpe = Tokenizer.from_str(train_bpe(["to be or not to be " * 9], 270))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    hugging_face_model(tmp_path, n_layer=1, n_head=1, n_embd=8, vocab_size=300, n_positions=16)
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert load_model(str(tmp_path))[1].encode("to be") == bpe.encode("to be").ids


def test_a_damaged_tokenizer_is_refused(theirs, tmp_path):
    for text in ("{", "{}", '{"model": {"type": "BPE", "vocab": {}}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        assert "tokenizer" in refusal(load_model, str(tmp_path))
