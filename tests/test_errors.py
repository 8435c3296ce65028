"""Everything a user can get wrong ends in one line on stderr and exit code 2: no traceback, no hang, nothing lost."""
import numpy as np
import pytest
from small_runs import write_shards


@pytest.mark.parametrize("flags, said", [
    (["--data_root=nowhere"], "no train shards in nowhere: run python fineweb.py, or try --preset=laptop"),
    (["--total_batch_size=1000"], "--total_batch_size=1024"),
    (["--B=3"], "--total_batch_size=288"),
    (["--T=64"], "try --T=32"),
    (["--n_embd=33"], "not divisible by n_head 2"),
    (["--no_such_flag=1"], "unrecognized arguments: --no_such_flag=1"),
    (["--max_step=3"], "unrecognized arguments"),
    (["--preset=gpt5"], "invalid choice: 'gpt5'"),
    (["--dtype=int8"], "invalid choice: 'int8'"),
    (["--tokenizer=words"], "invalid choice: 'words'"),
    (["--device=abacus"], "--device=abacus is not available here: try --device="),
    (["--device=cuda:x"], "--device=cuda:x is not available here"),
    (["--max_steps=many"], "invalid int value: 'many'"),
    (["--max_steps=-1"], "must be at least 0"),
    (["--B=0"], "--B=0: must be at least 1"),
    (["--max_lr=nan"], "--max_lr=nan"),
    (["--dropout=1.5"], "--dropout=1.5"),
    (["--grad_clip=0"], "--grad_clip=0"),
    (["--max_lr=1e-4"], "min_lr 0.001 is above max_lr 0.0001: try --min_lr=1e-05"),
    (["--resume=gone.pt"], "gone.pt is not a usable checkpoint"),
    (["--init_from=gone.pt"], "gone.pt is not a usable checkpoint"),
    (["--vocab_size=10"], "vocabulary"),
], ids=lambda v: v[0] if isinstance(v, list) else "")
def test_wrong_flags(flags, said, refused):
    assert said in refused(*flags)


def test_ids_beyond_the_vocabulary(tmp_path, refused):
    """Checked slice by slice as they are read: on a GPU such an id would be an assertion deep inside a kernel."""
    write_shards(tmp_path / "shards", [500, 600])
    path = tmp_path / "shards" / "edufineweb_train_000001.npy"
    tokens = np.load(path)
    tokens[555] = 50257
    np.save(path, tokens)
    err = refused(f"--data_root={tmp_path / 'shards'}")
    assert "edufineweb_train_000001.npy has token 50257 at offset 555" in err


def test_a_text_too_short_for_one_batch(text, refused):
    text.write_text("to be, or not to be")
    assert "too short for a batch" in refused()
