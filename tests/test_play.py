"""Facts about play.py, a trained model at work: how it generates text, and what the commands write and print."""
import io
import json
import os
import subprocess
import sys
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import ROOT, TINY_CONFIG, random_model

import play
from support import prompts
from support.arithmetic import count_parameters, flops_per_token
from support.hugging_face import save_pretrained
from support.tokenizer import gpt2_tokenizer, make_tokenizer
from train_gpt2 import GPT, GPTConfig, load_model

# --- the cache and generation ---------------------------------------------------------------------

def random_ids(*shape):
    return torch.randint(0, 128, shape, generator=torch.Generator().manual_seed(1))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=16))
@settings(max_examples=30, deadline=None)
def test_a_cache_changes_no_logits(cuts):
    """Fed to the model in pieces of any length, a text gets the logits it gets at once: the past never changes."""
    model, idx, cache = random_model(), random_ids(3, 16), play.KVCache(16)
    with torch.no_grad():
        expected, _ = model(idx)
        for n in cuts:
            new = idx[:, cache.n : cache.n + n]
            if new.size(1) > 0:
                logits = play.next_logits(model, new, cache)
                torch.testing.assert_close(logits, expected[:, cache.n - 1], atol=1e-5, rtol=1e-5)


def test_a_cache_serves_every_position_of_the_new_tokens():
    """Several tokens after a cache: each of them sees the cache and the new tokens up to itself."""
    model, idx, cache = random_model(), random_ids(3, 16), play.KVCache(16)
    with torch.no_grad():
        parts = []
        for start, end in ((0, 5), (5, 12), (12, 16)):
            parts.append(model.hidden(idx[:, start:end], torch.arange(start, end), cache))
            cache.advance(end - start)
        torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(idx), atol=1e-5, rtol=1e-5)


def test_greedy_text_equals_that_of_transformers(tmp_path):
    """The same weights and the most likely token each time: the same 200 tokens, in each of three rows."""
    transformers = pytest.importorskip("transformers")
    model = random_model(GPTConfig(block_size=256, vocab_size=97, n_layer=3, n_head=2, n_embd=64))
    save_pretrained(model, tmp_path, make_tokenizer("char", map(chr, range(32, 128))))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = random_ids(3, 8) % 97
    expected = theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=200, do_sample=False,
                               eos_token_id=None, pad_token_id=0)
    assert len(set(expected[0].tolist())) > 3, "a model that repeats itself would prove little"
    assert play.generate(model, idx, 200, temperature=0).equal(expected)


def test_sampled_text_equals_that_of_the_lecture():
    """GPT.generate computes the whole text again for each token; the same random numbers draw the same tokens."""
    model, idx = random_model(), random_ids(4, 3)
    ours, lecture = (generate(12, n_vocab=100, generator=torch.Generator().manual_seed(0))
                     for generate in (partial(play.generate, model, idx), partial(model.generate, idx)))
    assert ours.equal(lecture)


def test_when_the_window_is_full_its_older_half_is_dropped():
    """16 positions: token 17 is made from the newest 8, and so on. A prompt may be longer than the window."""
    model, idx = random_model(), random_ids(2, 21)
    for T in (1, 15, 16, 21):
        rows = start = idx[:, :T]
        window = min(T, 16)
        with torch.no_grad():
            for _ in range(40):
                rows = torch.cat((rows, model(rows[:, -window:])[0][:, -1:].argmax(dim=-1)), dim=1)
                window = 8 if window == 16 else window + 1
        assert play.generate(model, start, 40, temperature=0).equal(rows), T


def test_a_window_of_one_token():
    model = GPT(GPTConfig(1, 128, 1, 1, 8))
    assert play.generate(model, torch.zeros(2, 3, dtype=torch.long), 9).shape == (2, 12)


def test_samples_have_no_padding_ids():
    """Rows of the embedding beyond the tokenizer's size are never drawn, though a fresh model finds them as likely."""
    torch.manual_seed(0)
    rows = play.generate(GPT(TINY_CONFIG).eval(), torch.zeros(4, 3, dtype=torch.long), 60, n_vocab=20, top_k=200)
    assert rows.shape == (4, 63) and rows.max() < 20


def test_samples_depend_on_their_generator_only():
    """The same seed gives the same text, and the global random state is left alone."""
    model, idx = GPT(TINY_CONFIG).eval(), torch.zeros(1, 1, dtype=torch.long)
    before = torch.get_rng_state()
    a, b, c = (play.generate(model, idx, 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a.equal(b) and not a.equal(c)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("sampling", [dict(temperature=0), dict(temperature=1e-30), dict(top_k=1), dict(top_p=1e-6)],
                         ids=str)
def test_ways_to_ask_for_the_most_likely_token(sampling):
    model, idx = random_model(), torch.zeros(4, 1, dtype=torch.long)
    rows = play.generate(model, idx, 10, **sampling)
    assert rows.equal(play.generate(model, idx, 10, temperature=0, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("sampling, expected", [
    (dict(), [0.1, 0.4, 0.2, 0.3]),
    (dict(top_k=2), [0, 4 / 7, 0, 3 / 7]),
    (dict(top_p=0.65), [0, 4 / 7, 0, 3 / 7]),
    (dict(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
    (dict(top_k=3, top_p=0.75), [0, 4 / 7, 0, 3 / 7]),  # of the three, two make up 7 / 9
    (dict(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
], ids=str)
def test_the_shares_of_sampled_tokens(sampling, expected):
    """Probabilities 0.1, 0.4, 0.2, 0.3: what top_k, top_p and the temperature make of them, in 20,000 tokens."""
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(20_000, -1)
    plain = dict(temperature=1.0, top_k=50, top_p=1.0, generator=torch.Generator().manual_seed(0))
    ids = play.sample_token(logits, **{**plain, **sampling})
    shares = ids.flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)


def test_after_the_first_eot_every_token_is_eot():
    """Up to its first <|endoftext|> a row is the same with and without eot."""
    model, idx = random_model(), torch.arange(20).view(20, 1)
    free, ended = (play.generate(model, idx, 30, n_vocab=20, eot=eot, generator=torch.Generator().manual_seed(0))
                   for eot in (None, 7))
    assert free.shape == ended.shape == (20, 31)
    for a, b in zip(free[:, 1:].tolist(), ended[:, 1:].tolist(), strict=True):
        end = a.index(7) if 7 in a else 30
        assert a[:end] == b[:end] and set(b[end:]) <= {7}
    after_prompt = play.generate(model, idx * 0 + 7, 30, n_vocab=20, eot=7)[:, 1]
    assert (after_prompt != 7).any(), "an eot in the prompt ends nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_generation_in_every_dtype(dtype):
    """Weights of any dtype, or autocast: the cache takes the dtype of the keys, ids stay within the vocabulary."""
    idx = torch.zeros(2, 5, dtype=torch.long)
    rows = play.generate(random_model().to(dtype), idx, 20, n_vocab=100)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        others, cache = play.generate(random_model(), idx, 20, n_vocab=100), play.KVCache(16)
        random_model().hidden(idx, attend=cache)
    assert rows.shape == others.shape == (2, 25) and max(rows.max(), others.max()) < 100
    assert {kept.dtype for kept in (*cache.keys.values(), *cache.values.values())} == {dtype}


def test_stream_leaves_training_as_it_was():
    """Generation needs no gradients, and turns them on again: also when somebody stops in the middle."""
    stream = play.stream(random_model(), torch.zeros(1, 1, dtype=torch.long))
    assert not next(stream).requires_grad and torch.is_grad_enabled() and len(list(islice(stream, 3))) == 3


# --- saving ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["gpt2", "char", "bpe"])
def test_transformers_loads_what_we_export(kind, text, tmp_path, capsys):
    """Offline: the same logits to 1e-5, the same tokens, text from its pipeline; and we load it again as it was."""
    transformers = pytest.importorskip("transformers")
    words = text.read_text(encoding="utf-8")[:3000] + "  é\n\t😀 中文 "
    tokenizer = make_tokenizer("bpe:300" if kind == "bpe" else kind, [words])
    model = random_model(GPTConfig(64, -(-tokenizer.n_vocab // 128) * 128, 2, 2, 32))
    torch.save({"model": model.state_dict(), "config": vars(model.config), "tokenizer": tokenizer.spec, "step": 5},
               tmp_path / "model.pt")
    play.main(["export", str(tmp_path / "model.pt"), str(tmp_path / "hf")])
    again = load_model(str(tmp_path / "hf"))[1]
    assert again.encode(words) == tokenizer.encode(words) and again.spec["name"] == kind
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
    """The disk is full when half of the files are written: one line, and not one file. What is there stays."""
    import transformers

    def full(*args):
        raise OSError(28, "No space left on device")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("dear")
    assert "there already" in play_refuses("export", checkpoint, tmp_path / "taken")
    with monkeypatch.context() as m:
        m.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", full)
        assert "No space left" in play_refuses("export", checkpoint, tmp_path / "hf")
    assert os.listdir(tmp_path / "hf") == []
    play.main(["export", checkpoint, str(tmp_path / "hf")])  # the same command again


def test_an_export_into_an_empty_folder_and_a_link_to_one(checkpoint, tmp_path, monkeypatch):
    """A mounted volume cannot be renamed, and a shell may stand in the folder: the files are moved into it."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    monkeypatch.chdir(tmp_path / "volume")
    before = os.stat(tmp_path / "volume").st_ino
    play.main(["export", checkpoint, str(tmp_path / "link")])
    assert os.stat(".").st_ino == before and "config.json" in os.listdir(".") and (tmp_path / "link").is_symlink()


# --- the command line -----------------------------------------------------------------------------

@pytest.mark.parametrize("argv, said", [
    (["sample", "gone.pt", "x"], "there is no model gone.pt"),
    (["sample", "gone", "x"], "there is no model gone"),
    (["info", ROOT], "give a directory with a GPT-2"),
    (["info", __file__], "is not a usable checkpoint"),
    (["sample", "MODEL", "x", "--temperature=-1"], "--temperature=-1.0: must be at least 0"),
    (["sample", "MODEL", "x", "--temperature=nan"], "--temperature=nan: must be a finite number"),
    (["sample", "MODEL", "x", "--top_k=0"], "--top_k=0: must be at least 1"),
    (["sample", "MODEL", "x", "--top_p=0"], "--top_p=0.0: must be"),
    (["sample", "MODEL", "x", "--top_p=1.1"], "--top_p=1.1: must be at most 1"),
    (["sample", "MODEL", "x", "--num_samples=0"], "--num_samples=0: must be at least 1"),
    (["sample", "MODEL", "x", "--num_samples=1000000000"], "must be at most 1000"),
    (["sample", "MODEL", "x", "--seed=-1"], "--seed=-1: must be at least 0"),
    (["sample", "MODEL", "x", "--top_k=many"], "invalid int value"),
    (["sample", "MODEL", "x", "--device=abacus"], "--device=abacus is not available here"),
    (["sample", "MODEL", "x", "--dtype=int8"], "invalid choice: 'int8'"),
    (["sample", "MODEL", "x", "--temprature=1"], "--temprature=1: did you mean --temperature?"),
    (["sample", "MODEL", "@gone.txt"], "cannot read the prompt from gone.txt"),
    (["sample", "MODEL", "µ"], "has no 'µ'"),
    (["sample", "MODEL"], 'python play.py sample MODEL "PROMPT"'),
    (["sample", "MODEL", "to", "be"], "not 3 words"),
    (["chat", "MODEL", "--num_samples=2"], "chat has no flag --num_samples"),
    (["export", "MODEL", ""], "DIR is empty: is a variable of your shell not set?"),
    (["info", ""], "MODEL is empty"),
    (["info", "MODEL", "--seed=2"], "info has no flag --seed"),
    (["smaple", "MODEL", "x"], "there is no command smaple: did you mean sample?"),
    (["dance"], "there is no command dance: try sample, chat, export, info"),
    ([], "name a command: sample, chat, export, info"),
], ids=lambda v: " ".join(v[:3])[-40:] if isinstance(v, list) else "")
def test_wrong_input(argv, said, checkpoint, play_refuses):
    assert said in play_refuses(*[checkpoint if a == "MODEL" else a for a in argv])


def test_a_tilde_is_my_home(checkpoint, tmp_path, monkeypatch, capsys):
    """In quotes a shell leaves it as it is, and a directory named ~ would appear. A prompt may begin with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    play.main(["export", "~/log/model_00002.pt", "~/hf"])
    assert "config.json" in os.listdir(tmp_path / "hf")
    _, words, _ = play.parse_args(["sample", "~/log", "~/ is my home"])
    assert words == [str(tmp_path / "log"), "~/ is my home"]


def test_flags_stand_anywhere(checkpoint, capsys):
    """Before the command, between its words and after them; `--flag value` is `--flag=value`."""
    texts = []
    capsys.readouterr()
    for argv in (["sample", checkpoint, "the", "--max_new_tokens=9", "--device=cpu"],
                 ["--max_new_tokens=9", "sample", "--device", "cpu", checkpoint, "the"],
                 ["--device=cpu", "--max-new-tokens", "9", "sample", checkpoint, "the"]):
        play.main(argv)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] != ""


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


def test_a_long_text_is_decoded_once():
    """Of a thousand tokens no more than the last few are decoded at a time: the work grows with the text."""
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode("the 😀 中文 king " * 100)
    sizes = []

    def decode(some):
        sizes.append(len(some))
        return tokenizer.decode(some)
    assert "".join(play.pieces(SimpleNamespace(decode=decode), ids)) == tokenizer.decode(ids)
    assert max(sizes) < 20 < len(ids)


def test_a_space_that_only_a_first_token_leaves_out():
    """SentencePiece writes ▁the king: the first word of what is decoded loses its space, not the later ones."""
    words = ["▁the", "▁king", "▁of", "▁France"]
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(words[i] for i in ids).replace("▁", " ")[1:])
    assert "".join(play.pieces(tokenizer, range(4))) == "the king of France"


def test_of_a_long_prompt_the_model_sees_the_end(checkpoint, capsys, monkeypatch):
    """The rows are as long as the context; the same text as from the whole prompt, which is printed whole."""
    block_size = load_model(checkpoint)[2]["config"]["block_size"]
    prompt = "the king " * 100
    widths, generate = [], play.generate

    def measured(model, idx, *args, **kwargs):
        widths.append(idx.size(1))
        return generate(model, idx, *args, **kwargs)
    monkeypatch.setattr(play, "generate", measured)
    capsys.readouterr()
    outs = []
    for text in prompt, prompt[-block_size:]:  # a token is a character
        play.main(["sample", checkpoint, text, "--num_samples=2", "--max_new_tokens=9", "--device=cpu"])
        outs.append(capsys.readouterr().out)
    assert widths == [block_size, block_size] and outs[0].count(prompt) == 2
    assert outs[0] == outs[1].replace(prompt[-block_size:], prompt)


def test_chat_through_a_pipe(checkpoint, tmp_path):
    """Lines in, text out; what is wrong is said and changes nothing; the end of stdin is the end. Another process."""
    lines = "the king\n/temperature 0\n/top_k 0\n/top_k x\n/help\nµ\n/new\nthe king\n\n/seed 3\n"
    result = subprocess.run([sys.executable, os.path.join(ROOT, "play.py"), "chat", checkpoint, "--max_new_tokens=9",
                             "--device=cpu"], input=lines, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr.count("error: ") == len(result.stderr.splitlines()) == 3
    assert "/temperature 0.0\n/top_k 50\n" in result.stdout and "no 'µ'" in result.stderr and "> " not in result.stdout


def test_quit_leaves_the_chat(checkpoint, monkeypatch, capsys):
    """/quit ends it before the next line is read."""
    lines = iter(["/quit", "the king"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    play.main(["chat", checkpoint, "--device=cpu"])
    assert next(lines) == "the king"


def test_ctrl_c_stops_the_answer_only(checkpoint, monkeypatch, capsys):
    """What has been said stays part of the conversation, and the next line is read."""
    def stream(model, idx, *args, **kwargs):
        calls.append(idx.tolist())
        yield torch.tensor([[5]])
        raise KeyboardInterrupt
    calls, lines = [], iter(["the", "king"])
    monkeypatch.setattr(play, "stream", stream)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or exec("raise EOFError"))
    play.main(["chat", checkpoint, "--device=cpu"])
    _, tokenizer, _ = load_model(checkpoint)
    assert calls == [[tokenizer.encode("the")], [tokenizer.encode("the") + [5] + tokenizer.encode("\nking")]]


def test_importing_is_light():
    """No transformers, matplotlib or tokenizers before they are needed: --help and errors come at once."""
    code = "import sys, play; print({'transformers', 'matplotlib', 'tokenizers', 'datasets'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"


# --- what is in a model ---------------------------------------------------------------------------

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


@pytest.mark.parametrize("in_checkpoint, in_log, printed", [
    (3.25, "2 val 4.5", "validation loss 3.2500"), (None, "1 val 9\n2 val 4.5", "validation loss 4.5000"),
    (None, "1 val 9", ""), (None, None, "")], ids=["both", "log", "another step", "neither"])
def test_info_finds_the_validation_loss(in_checkpoint, in_log, printed, checkpoint, capsys):
    """In the checkpoint, where the original program stores it, or at its step in the log.txt beside it."""
    torch.save({**torch.load(checkpoint, weights_only=True), "val_loss": in_checkpoint}, checkpoint)
    log_txt = os.path.join(os.path.dirname(checkpoint), "log.txt")
    os.remove(log_txt)
    if in_log is not None:
        with open(log_txt, "w") as f:
            f.write(in_log + "\n")
    capsys.readouterr()
    play.main(["info", checkpoint])
    out = capsys.readouterr().out
    assert printed in out and ("validation loss" in out) == bool(printed)


def test_info_takes_no_loss_from_the_log_of_another_run(checkpoint, capsys):
    """A copied checkpoint lies beside a log that has its step, and another run's loss there."""
    folder = os.path.dirname(checkpoint)
    torch.save({**torch.load(checkpoint, weights_only=True), "run": "a"}, checkpoint)
    with open(os.path.join(folder, "log.txt"), "w") as f:
        f.write("2 val 4.5\n")
    for run, said in (("a", True), ("b", False)):
        with open(os.path.join(folder, "settings.json"), "w") as f:
            json.dump({"run": run}, f)
        play.main(["info", checkpoint])
        assert ("validation loss 4.5000" in capsys.readouterr().out) == said


def test_a_bug_does_not_read_as_a_damaged_file(checkpoint, monkeypatch):
    """What a file holds is checked before it is used, so nothing has to be caught around our own code."""
    monkeypatch.delattr(prompts, "load_tokenizer")
    with pytest.raises(NameError):
        play.main(["info", checkpoint])


def test_out_of_memory_is_a_line(checkpoint, monkeypatch, play_refuses):
    """Here it is not --B that would help."""
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    monkeypatch.setattr(play, "generate", fail)
    assert "out of memory in sample: try fewer --num_samples" in play_refuses("sample", checkpoint, "x", "--device=cpu")


@pytest.mark.slow
def test_without_docstrings():
    """python -OO leaves them out: --help has less to say, that is all."""
    command = [sys.executable, "-OO", os.path.join(ROOT, "play.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "--num_samples" in result.stdout and result.stderr == ""
