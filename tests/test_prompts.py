"""Facts about support/prompts.py: where a prompt comes from, and which tokenizer reads it."""
import io

import pytest
from small_runs import refusal

from support import prompts
from support.tokenizer import make_tokenizer


@pytest.mark.parametrize("word", ["the\nking", "@prompt.txt", "-"])
def test_a_prompt_is_text_or_a_file_or_stdin(word, tmp_path, monkeypatch):
    """Without the newline that an editor, or echo, adds at the end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text("the\nking\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("the\nking\n"))
    assert prompts.read_prompt(word) == "the\nking"


def test_the_name_of_a_prompts_file(tmp_path, monkeypatch):
    """~ is my home, although @ stands before it. Without a name there is no file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompt.txt").write_text("the king")
    assert prompts.read_prompt("@~/prompt.txt") == "the king"
    assert "the name of a file is missing after @" in refusal(prompts.read_prompt, "@")


@pytest.mark.parametrize("data", [None, b"caf\xe9"], ids=["no file", "not UTF-8"])
def test_a_file_that_cannot_be_read(data, tmp_path):
    path = tmp_path / "prompt.txt"
    if data is not None:
        path.write_bytes(data)
    assert f"cannot read the prompt from {path}: " in refusal(prompts.read_prompt, f"@{path}")


def test_an_empty_prompt_is_the_beginning_of_a_text():
    """It starts from <|endoftext|>, the token before every document."""
    tokenizer = make_tokenizer("char", "abc")
    assert prompts.tokenize(tokenizer, "") == [tokenizer.eot] and prompts.tokenize(tokenizer, "cab") == [3, 1, 2]


def test_a_tokenizer_belongs_to_its_model():
    """More tokens than the model has rows: another model's tokenizer. A tuned model has labels, and writes no text."""
    spec = make_tokenizer("char", "abc").spec  # three characters and <|endoftext|>
    saved = {"path": "model.pt", "config": {"vocab_size": 4}, "tokenizer": spec}
    assert prompts.read_tokenizer(saved).spec == spec
    line = refusal(prompts.read_tokenizer, {**saved, "config": {"vocab_size": 3}})
    assert line == "model.pt knows 3 tokens, its tokenizer 4: they do not belong together"
    assert "is tuned for classify" in refusal(prompts.read_tokenizer, {**saved, "task": {"name": "classify"}})
