"""
Facts about the exercises. By hand, 0a to 0l: each solution passes, an empty body gets a line that says what is missing,
and every usual slip, alone or with a second one, gets a line that names it. The upgrades: each solution is a patch that
applies to today's code and passes its check. (The solutions are in exercises/solutions.)
"""
import ast
import glob
import os
import re
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from small_runs import ROOT

EXERCISES = os.path.join(ROOT, "exercises")
FILES = {**dict.fromkeys("abcde", "by_hand"), **dict.fromkeys("fghi", "backward"), **dict.fromkeys("jkl", "tokens")}
LETTERS = sorted(FILES)


def source(letter):
    """The solution of an exercise, as text, and the name of its function."""
    [path] = glob.glob(os.path.join(EXERCISES, "solutions", f"0{letter}_*.py"))
    with open(path, encoding="utf-8") as f:
        return f.read(), os.path.basename(path)[3:-3]


# --- slips ----------------------------------------------------------------------------------------

# an exercise, words of the line that names the slip, then pieces of the solution and what replaces each

SLIPS = [
    ("a", "true and false, please", "return position[:, None] >= position",
     "return (position[:, None] >= position).float()"),
    ("a", "a token may look at itself", ">= position", "> position"),
    ("a", "should see the first", ">= position", "<= position"),
    ("a", "a token may look at itself", ">= position", "< position"),
    ("a", "that is the future", ">= position", ">= 0 * position"),
    ("a", "the shape (1, 1), not (1,)", "position[:, None] >= position", "position >= 0"),
    ("b", "not divided by anything", " / math.sqrt(hs)", ""),
    ("b", "a standard deviation of sqrt(hs)", "math.sqrt(hs)", "hs"),
    ("b", "where is the mask?", 'scores.masked_fill(~past, float("-inf"))', "scores"),
    ("b", "scores * mask makes the scores of the future 0", 'scores.masked_fill(~past, float("-inf"))',
     "scores * past"),
    ("b", "the mask comes after the softmax", 'scores.masked_fill(~past, float("-inf"))', "scores",
     "return weights", "return weights * past"),
    ("b", "for one query the weights of all keys", "dim=-1", "dim=-2"),
    ("b", "queries and keys are swapped", "q @ k", "k @ q"),
    ("b", "some outputs are nan", "~past", "past"),
    ("b", "look at the first token", "return weights @ v", "return weights @ v + 1"),
    ("b", "not divided by anything", " / math.sqrt(hs)", "", "scores.masked_fill(~past, float(\"-inf\"))",
     "scores * past"),
    ("c", "this is the sum", ".mean()", ".sum()"),
    ("c", "the sign", "log_sum - of_target", "of_target - log_sum"),
    ("c", "these are bits", ".log()", ".log2()", "of_target)", "of_target / 0.6931471806)"),
    ("c", "without the softmax", "(log_sum - of_target)", "(-logits[torch.arange(len(targets)), targets])"),
    ("c", "dim=-1", "sum(dim=-1)", "sum(dim=0)", "max(dim=-1", "max(dim=0", "(log_sum - of_target)",
     "(log_sum[targets] - of_target)"),
    ("c", "subtract each row's largest logit first", "logits - logits.max(dim=-1, keepdim=True).values", "logits"),
    ("c", "this is the sum", ".mean()", ".sum()", "log_sum - of_target", "of_target - log_sum"),
    ("d", "y is x: ", "piece[1:]", "piece[:-1]"),
    ("d", "write backwards", "piece[1:].view(B, T)", "tokens[position - 1 : position + B * T - 1].view(B, T)"),
    ("d", "by a whole row", "piece[1:].view(B, T)", "tokens[position + T : position + B * T + T].view(B, T)"),
    ("d", "one token is never read as an input", "y, position + B * T", "y, position + B * T + 1"),
    ("d", "the shift stays inside a row", "piece[1:].view(B, T)", "x.roll(-1, dims=1)"),
    ("d", "three things", "x, y, position + B * T", "x, y"),
    ("e", "the gradients of an earlier step", "    optimizer.zero_grad()\n", ""),
    ("e", "only the last micro batch counts", "    optimizer.zero_grad()\n", "",
     "        loss.backward", "        optimizer.zero_grad()\n        loss.backward"),
    ("e", "divide each loss by their number", "loss / len(micro_batches)", "loss"),
    ("e", "an update after every micro batch", "        loss.backward()", "        loss.backward(); optimizer.step()",
     "    optimizer.step()\n    return", "    return"),
    ("e", "is there an optimizer.step()?", "    optimizer.step()\n", ""),
    ("e", "is there a loss.backward()", "        loss.backward()\n", ""),
    ("e", "the gradient is not clipped", ", grad_clip)\n", ', float("inf"))\n'),
    ("e", "clipped after each micro batch", "    norm = ", "        norm = "),
    ("e", "the learning rate is still the one", 'group["lr"] = lr', "pass"),
    ("e", "the learning rate should be lr", 'group["lr"] = lr', 'group["lr"] = lr / 4'),
    ("e", "keeps all activations", "loss.detach()", "loss"),
    ("e", "the one after clipping", "return loss_accum, norm", "return loss_accum, norm.clamp(max=grad_clip)"),
    ("e", "undivided", "return loss_accum, norm", "return 4 * loss_accum, norm"),
    ("e", "2 things", "return loss_accum, norm", "return loss_accum"),
    ("e", "the learning rate is still the one", 'group["lr"] = lr', "pass", "loss / len(micro_batches)", "loss"),
    ("e", "the gradients of an earlier step", "    optimizer.zero_grad()\n", "", "loss / len(micro_batches)", "loss"),
    ("e", "divide each loss by their number", ", grad_clip)\n", ', float("inf"))\n', "loss / len(micro_batches)",
     "loss"),
    ("f", "not divided by N", "dlogits / N", "dlogits"),
    ("f", "divided by N * V", "dlogits / N", "dlogits / dlogits.numel()"),
    ("f", "the sign", "return dlogits", "return -dlogits"),
    ("f", "the -1 at each target is missing", "-= 1", "-= 0"),
    ("f", "it is p + 1", "-= 1", "+= 1"),
    ("f", "from all logits", "dlogits[torch.arange(N), targets] -= 1", "dlogits -= 1"),
    ("f", "the -1 at each target alone", "logits.softmax(dim=-1)", "torch.zeros_like(logits)"),
    ("f", "the logits stand where", "logits.softmax(dim=-1)", "logits.clone()"),
    ("f", "the logits have changed", "logits.softmax(dim=-1)", "logits.sub_(logits.logsumexp(-1, True)).exp_()"),
    ("f", "over the vocabulary", "dim=-1", "dim=0"),
    ("f", "exp(1000) is too large", "logits.softmax(dim=-1)", "logits.exp() / logits.exp().sum(-1, keepdim=True)"),
    ("f", "not divided by N", "dlogits / N", "dlogits", "-= 1", "+= 1"),
    ("f", "the sign", "return dlogits", "return -dlogits", "-= 1", "-= 0"),
    ("g", "eps is forgotten", " + eps", ""),
    ("g", "divided by C - 1", "unbiased=False", "unbiased=True"),
    ("g", "here it gets dy", "g = dy * weight", "g = dy"),
    ("g", "- mean(g) is missing", "g - g_mean - xhat", "g - xhat"),
    ("g", "- xhat * mean(g * xhat) is missing", " - xhat * (g * xhat).mean(dim=-1, keepdim=True)", ""),
    ("g", "the division by sigma is missing", "(g * xhat).mean(dim=-1, keepdim=True)) / sigma",
     "(g * xhat).mean(dim=-1, keepdim=True))"),
    ("g", "sigma is its root", "(g * xhat).mean(dim=-1, keepdim=True)) / sigma",
     "(g * xhat).mean(dim=-1, keepdim=True)) / sigma ** 2"),
    ("g", ".grad = instead of +=", "weight.grad +=", "weight.grad =", "bias.grad +=", "bias.grad ="),
    ("g", ".grad is as it was", "    bias.grad += dy.sum(dim=0)\n", ""),
    ("g", "means over the rows", "(dy * xhat).sum", "(dy * xhat).mean", "dy.sum", "dy.mean"),
    ("g", "not of dy * x", "(dy * xhat).sum", "(dy * x).sum"),
    ("g", "eps is forgotten", " + eps", "", "g - g_mean - xhat", "g - xhat"),
    ("g", "here it gets dy", "g = dy * weight", "g = dy", "g - g_mean - xhat", "g - xhat"),
    ("g", ".grad = instead of +=", "weight.grad += (dy * xhat).sum", "weight.grad = (dy * xhat).mean",
     "bias.grad += dy.sum", "bias.grad = dy.mean"),
    ("h", "P has no mask", '.masked_fill(~past, float("-inf"))', ""),
    ("h", "the mask comes after the softmax", '.masked_fill(~past, float("-inf")).softmax(dim=-1)',
     ".softmax(dim=-1) * past"),
    ("h", "scores * mask makes", 'scores.masked_fill(~past, float("-inf"))', "(scores * past)"),
    ("h", "the scores are not divided by", "k.mT / math.sqrt(hs)", "k.mT", "dS = dS / math.sqrt(hs)", "pass"),
    ("h", "dq and dk are too large", "dS = dS / math.sqrt(hs)", "pass"),
    ("h", "lacks its second term", " - (P * dP).sum(dim=-1, keepdim=True)", ""),
    ("h", "the sum runs over the queries", "(P * dP).sum(dim=-1", "(P * dP).sum(dim=-2"),
    ("h", "P is not transposed", "P.mT @ dy", "P @ dy"),
    ("h", "dS is not transposed", "dS.mT @ q", "dS @ q"),
    ("h", "has nan", "dS = dS /", "dS = scores.masked_fill(~past, float('-inf')) * 0 * dS /"),
    ("h", "should return 3 things: dq, dk and dv", ", dv\n", "\n"),
    ("h", "the mask comes after the softmax", '.masked_fill(~past, float("-inf")).softmax(dim=-1)',
     ".softmax(dim=-1) * past", "dS.mT @ q", "dS @ q"),
    ("h", "lacks its second term", " - (P * dP).sum(dim=-1, keepdim=True)", "", "P.mT @ dy", "P @ dy"),
    ("i", "bias correction is missing", " / (1 - beta1 ** t)", "", " / (1 - beta2 ** t)", ""),
    ("i", "m has no bias correction", " / (1 - beta1 ** t)", ""),
    ("i", "v has no bias correction", " / (1 - beta2 ** t)", ""),
    ("i", "one step ahead", "beta1 ** t", "beta1 ** (t + 1)", "beta2 ** t", "beta2 ** (t + 1)"),
    ("i", "goes into the gradient", "    m = ", "    grad = grad + weight_decay * p\n    m = ", " - decay", ""),
    ("i", "weight decay is missing", " - decay", ""),
    ("i", "lacks lr", "lr * weight_decay", "weight_decay"),
    ("i", "pulls the new p", "weight_decay * p", "weight_decay * (p - step)"),
    ("i", "this is what eps is for", " + eps", ""),
    ("i", "inside the root", "vhat.sqrt() + eps", "(vhat + eps).sqrt()"),
    ("i", "they are not squared", "grad ** 2", "grad.abs()"),
    ("i", "the root is missing", "vhat.sqrt()", "vhat"),
    ("i", "uphill", "p - step", "p + step"),
    ("i", "swapped", "beta1, beta2, eps", "beta2, beta1, eps"),
    ("i", "the corrected ones", "decay, m, v", "decay, mhat, vhat"),
    ("i", "bias correction is missing", " / (1 - beta1 ** t)", "", " / (1 - beta2 ** t)", "", "lr * weight_decay",
     "weight_decay"),
    ("i", "goes into the gradient", "    m = ", "    grad = grad + weight_decay * p\n    m = ", " - decay", "",
     "vhat.sqrt() + eps", "(vhat + eps).sqrt()"),
    ("j", "each different word is counted once", "+= words[word]", "+= 1"),
    ("j", "the rarest pair", "-counts[pair]", "counts[pair]"),
    ("j", "the one that is met first", "(-counts[pair], pair)", "-counts[pair]"),
    ("j", "the largest is taken", "(-counts[pair], pair)", "(-counts[pair], -pair[0], -pair[1])"),
    ("j", "all merges make the same token", "256 + i", "256"),
    ("j", "only where it is met first", "(merged[-1], token) == pair",
     "(merged[-1], token) == pair and new not in merged"),
    ("j", "it should end early", "        if not counts:\n            break\n", ""),
    ("j", "two ids (the byte l is 108)", "append(best)", "append(tuple(bytes([i]) for i in best))"),
    ("j", "each different word is counted once", "+= words[word]", "+= 1", "(-counts[pair], pair)", "-counts[pair]"),
    ("k", "learned last goes first", "min(known", "max(known"),
    ("k", "the leftmost pair", "min(known, key=rank.get)", "known[0]"),
    ("k", "one merge and no more", "256 + rank[best])\n", "256 + rank[best])\n        return ids\n"),
    ("k", "so add 256", "256 + rank", "rank"),
    ("k", "merges has changed", "    ids = list(word)", "    ids = list(word); merges.pop()"),
    ("k", "the leftmost pair", "min(known, key=rank.get)", "known[0]", "256 + rank[best])\n",
     "256 + rank[best])\n        return ids\n"),
    ("l", "with which the sum reaches p", " - ranked  #", "  #"),
    ("l", "not divided by its sum", " / kept.sum(dim=-1, keepdim=True)", ""),
    ("l", "come back sorted", "torch.zeros_like(probs).scatter(-1, ids, ranked)", "ranked"),
    ("l", "sort in descending order", "descending=True", "descending=False"),
    ("l", "a softmax would give", "kept / kept.sum(dim=-1, keepdim=True)", "kept.softmax(-1)"),
    ("l", "not divided by its sum", " / kept.sum(dim=-1, keepdim=True)", "",
     "torch.zeros_like(probs).scatter(-1, ids, ranked)", "ranked"),
]


@pytest.fixture
def check(monkeypatch):
    """check("a", function) runs the check of an exercise on an answer -> the line of its failure, "" if it passes."""
    def run(letter, function):
        module = FILES[letter]
        monkeypatch.syspath_prepend(EXERCISES)
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{source(letter)[1]: function}))
        checks = runpy.run_path(os.path.join(EXERCISES, f"test_{module}.py"))
        [test] = [value for key, value in checks.items() if key.startswith(f"test_0{letter}_")]
        try:
            test()
        except pytest.fail.Exception as e:
            return " ".join(str(e).split())
        return ""
    return run


def answer(letter, replacements=()):
    """The function of the solution, with some pieces of its text replaced."""
    text, name = source(letter)
    for old, new in zip(replacements[::2], replacements[1::2], strict=True):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    module = {}
    exec(text, module)
    return module[name]


@pytest.mark.parametrize("letter", LETTERS)
def test_the_solution_passes_and_an_empty_body_is_told_what_to_return(letter, check):
    """What a learner opens is empty, and its check fails with a line that says what is missing."""
    name = source(letter)[1]
    assert check(letter, answer(letter)) == ""
    empty = runpy.run_path(os.path.join(EXERCISES, f"{FILES[letter]}.py"))[name]
    assert check(letter, empty).startswith(f"{name} returns nothing yet; it should ")


@pytest.mark.parametrize("letter", LETTERS)
def test_a_solution_says_in_three_sentences_what_there_was_to_notice(letter):
    """After the title: the reason to read a solution when one's own has passed."""
    docstring = " ".join(ast.get_docstring(ast.parse(source(letter)[0])).split())
    assert docstring.startswith(f"0{letter}, ") and len(re.findall(r"[.:?](?= |$)", docstring)) >= 4


@pytest.mark.parametrize("letter, words, replacements", [(letter, words, rest) for letter, words, *rest in SLIPS],
                         ids=[f"0{letter}-{words}" for letter, words, *_ in SLIPS])
def test_a_usual_slip_is_named(letter, words, replacements, check):
    """A learner who forgets to divide hears about dividing, not that two numbers differ."""
    assert words.lower() in check(letter, answer(letter, replacements)).lower()


# --- the upgrades -------------------------------------------------------------------------------------

PATCHES = sorted(glob.glob(os.path.join(EXERCISES, "solutions", "*.patch")))
NAMES = [os.path.basename(path).removesuffix(".patch") for path in PATCHES]


def test_each_upgrade_has_a_solution():
    """Each check of test_exercises.py but the one of the numbers."""
    with open(os.path.join(EXERCISES, "test_exercises.py"), encoding="utf-8") as f:
        checks = re.findall(r"^def test_(\w+)\(", f.read(), re.MULTILINE)
    assert sorted(set(checks) - {"number"}) == NAMES


@pytest.mark.parametrize("path", PATCHES, ids=NAMES)
def test_the_solution_of_an_upgrade_applies_to_todays_code(path):
    """It begins with three sentences and the command, which git passes over."""
    with open(path, encoding="utf-8") as f:
        words = " ".join(f.read().split("diff --git")[0].split())
    name = os.path.basename(path)
    assert words.startswith(name.removesuffix("patch") + " ") and f"git apply exercises/solutions/{name}" in words
    assert len(re.findall(r"[.:](?= |$)", words)) >= 4
    subprocess.run(["git", "apply", "--check", path], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATCHES, ids=NAMES)
def test_the_solution_of_an_upgrade_passes_its_check(path, tmp_path):
    """In a copy of the project."""
    unneeded = shutil.ignore_patterns(".*", "__pycache__", "log", "docs", "assets")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=unneeded)
    subprocess.run(["git", "apply", path], cwd=tmp_path / "copy", check=True)
    name = os.path.basename(path).removesuffix(".patch")
    command = [sys.executable, "-m", "pytest", "-q", "exercises", "-k", f"test_{name}"]
    checked = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True)
    assert checked.returncode == 0 and "1 passed" in checked.stdout, checked.stdout
