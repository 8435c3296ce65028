"""Facts about using a model: how it writes, what it is saved as, and what play.py makes of both."""
import contextlib
import io
import os
import struct
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from small_runs import ROOT, random_model, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

import play
from train_gpt2 import GPT, GPTConfig, load_model
from support.tokenizer import (gpt2_tokenizer, load_tokenizer, make_tokenizer,
                               save_tokenizer)
from support.arithmetic import count_parameters, flops_per_token


# --- writing: the cache, the window, the choice of a token ---------------------------------------------

@given(st.lists(st.integers(1, 5), min_size=1, max_size=16))
@settings(max_examples=30, deadline=None)
def test_a_cache_changes_no_logits(cuts):
    """Fed to the model in pieces of any length, a text gets the logits it gets at once: the past never changes."""
    model, idx = random_model(), torch.randint(0, 128, (3, 16), generator=torch.Generator().manual_seed(1))
    cache, pieces = SimpleNamespace(n=0, size=16, kv={}), []
    with torch.no_grad():
        for n in cuts:
            if cache.n < 16:
                pieces.append(model(idx[:, cache.n : cache.n + n], cache=cache)[0])
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx[:, : cache.n])[0], atol=1e-5, rtol=1e-5)


def test_greedy_text_equals_that_of_transformers(tmp_path):
    """The same weights and the likeliest token each time: the same 200 tokens, in each of three rows."""
    transformers = pytest.importorskip("transformers")
    model = random_model(GPTConfig(block_size=256, vocab_size=97, n_layer=3, n_head=2, n_embd=64))
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = torch.randint(0, 97, (3, 8), generator=torch.Generator().manual_seed(1))
    expected = theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=200, do_sample=False,
                               eos_token_id=None, pad_token_id=0)
    assert len(set(expected[0].tolist())) > 3, "a model that repeats itself would prove little"
    assert model.generate(idx, 200, temperature=0).equal(expected)


def test_when_the_window_is_full_its_older_half_is_forgotten():
    """16 positions: token 17 is made from the newest 8, and so on. A prompt may be longer than the window."""
    model, idx = random_model(), torch.randint(0, 128, (2, 21), generator=torch.Generator().manual_seed(1))
    for T in (1, 15, 16, 21):
        rows = start = idx[:, :T]
        window, seen = min(T, 16), []
        with torch.no_grad():
            for _ in range(40):
                seen.append(window)
                rows = torch.cat((rows, model(rows[:, -window:])[0][:, -1:].argmax(dim=-1)), dim=1)
                window = 8 if window == 16 else window + 1
        assert model.generate(start, 40, temperature=0).equal(rows), (T, seen)


def test_a_window_of_one_token():
    assert GPT(GPTConfig(1, 128, 1, 1, 8)).generate(torch.zeros(2, 3, dtype=torch.long), 9).shape == (2, 12)


@pytest.mark.parametrize("sampling", [dict(temperature=0), dict(temperature=1e-30), dict(top_k=1), dict(top_p=1e-6)],
                         ids=str)
def test_ways_to_say_the_likeliest(sampling):
    model, idx = random_model(), torch.zeros(4, 1, dtype=torch.long)
    rows = model.generate(idx, 10, **sampling)
    assert rows.equal(model.generate(idx, 10, temperature=0, generator=torch.Generator().manual_seed(5)))


def test_the_shares_of_sampled_tokens(monkeypatch):
    """Probabilities 0.1, 0.4, 0.2, 0.3: what top_k, top_p and the temperature leave of them, in 20,000 tokens."""
    model = GPT(GPTConfig(8, 4, 1, 1, 8)).eval()
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    monkeypatch.setattr(model, "forward", lambda idx, wanted, cache: (p.log().expand(len(wanted), -1), None))
    for sampling, expected in ((dict(), [0.1, 0.4, 0.2, 0.3]), (dict(top_k=2), [0, 4 / 7, 0, 3 / 7]),
                               (dict(top_p=0.65), [0, 4 / 7, 0, 3 / 7]), (dict(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
                               (dict(top_k=3, top_p=0.75), [0, 4 / 7, 0, 3 / 7]),  # of the three, two make up 7 / 9
                               (dict(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30])):
        new = next(model.stream(torch.zeros(20_000, 1, dtype=torch.long), generator=torch.Generator().manual_seed(0),
                                **sampling))
        shares = new.flatten().bincount(minlength=4) / 20_000
        torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)


def test_after_the_end_of_a_text_comes_nothing_else():
    """Up to its first <|endoftext|> a row is the same with and without eot; afterwards it is filled up with it."""
    model, idx = random_model(), torch.arange(20).view(20, 1)
    free, ended = (model.generate(idx, 30, n_vocab=20, eot=eot, generator=torch.Generator().manual_seed(0))
                   for eot in (None, 7))
    assert free.shape == ended.shape == (20, 31)
    for a, b in zip(free[:, 1:].tolist(), ended[:, 1:].tolist(), strict=True):
        end = a.index(7) if 7 in a else 30
        assert a[:end] == b[:end] and set(b[end:]) <= {7}
    assert (model.generate(idx * 0 + 7, 30, n_vocab=20, eot=7)[:, 1] != 7).any(), "one in the prompt ends nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_generation_in_every_dtype(dtype):
    """Weights of any dtype, or autocast: the cache takes the dtype of the keys, ids stay within the vocabulary."""
    idx = torch.zeros(2, 5, dtype=torch.long)
    rows = random_model().to(dtype).generate(idx, 20, n_vocab=100)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        others, cache = random_model().generate(idx, 20, n_vocab=100), SimpleNamespace(n=0, size=16, kv={})
        random_model()(idx, cache=cache)
    assert rows.shape == others.shape == (2, 25) and max(rows.max(), others.max()) < 100
    assert {kv.dtype for kv in cache.kv.values()} == {dtype}


# --- saving ----------------------------------------------------------------------------------------------

def bpe_tokenizer(text):
    """A byte-level BPE of 300 tokens, as a tokenizer of ours."""
    tokenizers = pytest.importorskip("tokenizers")
    hf = tokenizers.ByteLevelBPETokenizer()
    hf.train_from_iterator([text], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    spec = {"name": "bpe", "json": hf.to_str()}
    with contextlib.suppress(KeyError, AttributeError, TypeError):
        if load_tokenizer(spec).spec["name"] == "bpe":
            return load_tokenizer(spec)
    return SimpleNamespace(spec=spec, eot=0, n_vocab=300, encode=lambda text: hf.encode(text).ids, decode=hf.decode)


@pytest.mark.parametrize("kind", ["gpt2", "char", "bpe"])
def test_transformers_loads_what_we_export(kind, text, tmp_path, capsys):
    """Offline: the same logits to 1e-5, the same tokens, text from its pipeline; and we load it again as it was."""
    transformers = pytest.importorskip("transformers")
    words = text.read_text(encoding="utf-8")[:3000] + "  é\n\t😀 中文 "
    tokenizer = bpe_tokenizer(words) if kind == "bpe" else make_tokenizer(kind, words)
    model = random_model(GPTConfig(64, -(-tokenizer.n_vocab // 128) * 128, 2, 2, 32))
    torch.save({"model": model.state_dict(), "config": vars(model.config), "tokenizer": tokenizer.spec, "step": 5},
               tmp_path / "model.pt")
    if kind == "bpe" and isinstance(tokenizer, SimpleNamespace):  # load_tokenizer does not know it yet
        model.save_pretrained(tmp_path / "hf", tokenizer.n_vocab, tokenizer.eot)
        save_tokenizer(tokenizer, tmp_path / "hf", 64)
    else:
        play.main(["export", str(tmp_path / "model.pt"), str(tmp_path / "hf")])
        assert load_model(str(tmp_path / "hf"))["tokenizer"] == tokenizer.spec
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs_tokenizer(words).input_ids == tokenizer.encode(words)
    assert theirs_tokenizer.decode(tokenizer.encode(words)) == words and theirs_tokenizer.eos_token_id == tokenizer.eot
    idx = torch.tensor([tokenizer.encode(words)[:64]])
    with torch.no_grad():
        a, b = model(idx)[0][..., : tokenizer.n_vocab], theirs(idx).logits
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert theirs.generation_config.eos_token_id == tokenizer.eot
    made = transformers.pipeline("text-generation", str(tmp_path / "hf"))(words[:9], max_new_tokens=5, do_sample=False)
    assert made[0]["generated_text"].startswith(words[:9])


def test_an_export_is_whole_or_not_there(checkpoint, tmp_path, play_refuses, monkeypatch):
    """The disk is full when half of the files are written: one line, and neither a directory nor a rest of one."""
    def full(*args):
        raise OSError(28, "No space left on device")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("dear")
    assert "there already" in play_refuses("export", checkpoint, tmp_path / "taken")
    monkeypatch.setattr(play, "save_tokenizer", full)
    before = sorted(tmp_path.rglob("*"))
    assert "No space left" in play_refuses("export", checkpoint, tmp_path / "hf")
    assert sorted(tmp_path.rglob("*")) == before


# --- the command line ------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, said", [
    (["sample", "gone.pt", "x"], "there is no model gone.pt"),
    (["sample", "gone", "x"], "there is no model gone"),
    (["info", ROOT], "has no config.json"),
    (["info", __file__], "is not a usable checkpoint"),
    (["sample", "MODEL", "x", "--temperature=-1"], "temperature -1.0 cannot be"),
    (["sample", "MODEL", "x", "--temperature=nan"], "temperature nan cannot be"),
    (["sample", "MODEL", "x", "--top_k=0"], "top_k 0 cannot be"),
    (["sample", "MODEL", "x", "--top_p=0"], "top_p 0.0 cannot be"),
    (["sample", "MODEL", "x", "--top_p=1.1"], "top_p 1.1 cannot be"),
    (["sample", "MODEL", "x", "--num_samples=0"], "num_samples 0 cannot be"),
    (["sample", "MODEL", "x", "--seed=-1"], "seed -1 cannot be"),
    (["sample", "MODEL", "x", "--top_k=many"], "invalid int value"),
    (["sample", "MODEL", "x", "--device=abacus"], "--device=abacus is not available here"),
    (["sample", "MODEL", "@gone.txt"], "cannot read the prompt from gone.txt"),
    (["sample", "MODEL", "µ"], "has no 'µ'"),
    (["sample", "MODEL"], "the following arguments are required: prompt"),
    (["dance"], "invalid choice: 'dance'"),
    ([], "are required"),
    (["plot", "gone"], "there is no log"),
    (["plot", "MODEL"], "has no lines `step stream value`"),
    (["plot", "LOG", "--out=log.txt"], "must end in .png, .svg or .pdf"),
    (["plot", "LOG", "--out=gone/log.png"], "cannot write gone/log.png"),
    (["plot", "LOG", "--reference"], "another tokenizer than GPT-2's"),
], ids=lambda v: " ".join(v[:3])[-40:] if isinstance(v, list) else "")
def test_wrong_input(argv, said, checkpoint, play_refuses):
    there = {"MODEL": checkpoint, "LOG": os.path.dirname(checkpoint)}
    assert said in play_refuses(*[there.get(a, a) for a in argv])


def test_an_empty_prompt_is_the_beginning_of_a_text():
    """It starts from <|endoftext|>, the token before every document; without such a token it is refused."""
    tokenizer = make_tokenizer("char", "abc")
    assert play.tokenize(tokenizer, "") == [tokenizer.eot] and play.tokenize(tokenizer, "cab") == [3, 1, 2]
    refusal(play.tokenize, SimpleNamespace(encode=list, eot=None), "")


def test_sample(checkpoint, tmp_path, capsys, monkeypatch):
    """The prompt from the command line, a file or stdin; the same seed, the same text; several samples, numbered."""
    def sample(prompt, *flags):
        play.main(["sample", checkpoint, prompt, "--max_new_tokens=20", "--device=cpu", *flags])
        return capsys.readouterr().out
    capsys.readouterr()
    (tmp_path / "prompt.txt").write_text("the\nking\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("the\nking"))
    first = sample("the\nking")
    assert first.startswith("the\nking") and len(first) == len("the\nking") + 20 + 1
    assert first == sample(f"@{tmp_path / 'prompt.txt'}") == sample("-") != sample("the\nking", "--seed=43")
    assert sample("the", "--num_samples=3").count("--- sample ") == 3


@given(st.lists(st.integers(0, 50256), max_size=40), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_characters_come_out_whole(ids, text):
    """The pieces are the text, each is final when it is shown, and no character is shown before its last byte."""
    ids += gpt2_tokenizer().encode(text + "😀")
    assert "".join(play.pieces(gpt2_tokenizer(), ids)) == gpt2_tokenizer().decode(ids)
    emoji = gpt2_tokenizer().encode("😀")
    assert len(emoji) > 1 and [p for p in play.pieces(gpt2_tokenizer(), emoji) if p] == ["😀"]


def test_chat_through_a_pipe(checkpoint, tmp_path):
    """Lines in, text out; what is wrong is said and changes nothing; the end of stdin is the end. Another process."""
    lines = "the king\n/temperature 0\n/top_k 0\n/top_k x\n/help\nµ\n/new\nthe king\n\n/seed 3\n"
    result = subprocess.run([sys.executable, os.path.join(ROOT, "play.py"), "chat", checkpoint, "--max_new_tokens=9",
                             "--device=cpu"], input=lines, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr.count("error: ") == len(result.stderr.splitlines()) == 3
    assert "/temperature 0.0\n/top_k 50\n" in result.stdout and "no 'µ'" in result.stderr and "> " not in result.stdout


def test_ctrl_c_stops_the_answer_only(checkpoint, monkeypatch, capsys):
    """What has been said stays part of the conversation, and the next line is read."""
    def stream(self, idx, *args, **kwargs):
        calls.append(idx.tolist())
        yield torch.tensor([[5]])
        raise KeyboardInterrupt
    calls, lines = [], iter(["the", "king"])
    monkeypatch.setattr(GPT, "stream", stream)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or exec("raise EOFError"))
    play.main(["chat", checkpoint, "--device=cpu"])
    tokenizer = load_tokenizer(load_model(checkpoint)["tokenizer"])
    assert calls == [[tokenizer.encode("the")], [tokenizer.encode("the") + [5] + tokenizer.encode("\nking")]]


def test_importing_is_light():
    """No transformers, matplotlib or tokenizers before they are needed: --help and errors come at once."""
    code = "import sys, play; print({'transformers', 'matplotlib', 'tokenizers', 'datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"


# --- runs ------------------------------------------------------------------------------------------------

def size(png):
    """Width and height of a picture, which stand at its beginning."""
    return struct.unpack(">II", png.read_bytes()[16:24])


@pytest.mark.parametrize("flags", [(), ("--reference",), ("--reference", "--tokens")], ids=" ".join)
def test_plot(flags, tmp_path, capsys):
    """Two runs, one of them unfinished and resumed; with HellaSwag or the public runs there are two panels."""
    pytest.importorskip("matplotlib")
    for name, steps in (("a", 30), ("b", 4)):
        (tmp_path / name).mkdir()
        train = "".join(f"{i} train {9 - i / 9}\n" for i in range(steps))
        (tmp_path / name / "log.txt").write_text(train + "0 val 9.1\n0 hella 0.25\n")
    play.main(["plot", str(tmp_path / "a"), str(tmp_path / "b" / "log.txt"), f"--out={tmp_path / 'p.png'}", *flags])
    assert size(tmp_path / "p.png") == (850, 400) and "wrote" in capsys.readouterr().out


def test_info(checkpoint, capsys):
    """Parameters by part, steps, losses, settings; 8.55e8 FLOPs a token for the 124M model at 1,024 tokens."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=50257))
    assert flops_per_token(model.config, 1024) == pytest.approx(8.55e8, rel=1e-3)
    assert sum(play.parameters_by_part(model).values()) == count_parameters(model.config) == 124_439_808
    capsys.readouterr()
    play.main(["info", checkpoint])
    out = capsys.readouterr().out
    assert "2 blocks, 2 heads, 32 channels" in out and "2 steps, 512 tokens seen" in out and "max_lr=0.01" in out


def test_stream_leaves_training_as_it_was():
    """Writing needs no gradients, and turns them on again: also when somebody stops in the middle."""
    stream = random_model().stream(torch.zeros(1, 1, dtype=torch.long))
    assert not next(stream).requires_grad and torch.is_grad_enabled() and len(list(islice(stream, 3))) == 3
