"""Facts about README.zh.md: it is README.md in Chinese, block by block, with the same commands, figures and links."""
import os
import re
from collections import Counter
from itertools import zip_longest

import pytest
from small_runs import ROOT

TEXTS = {}
for name in ("README.md", "README.zh.md"):
    with open(os.path.join(ROOT, name), encoding="utf-8") as f:
        TEXTS[name] = f.read()

CODE = r"`([^`]+)`"
# not the digits of names (GPT-2, H100): a pronoun may take their place in one of the languages
NUMBER = r"(?<![A-Za-z_\d])(?<![A-Za-z]-)(?<!\d[.,])\d+(?:[.,]\d+)*(?:e-?\d+)?"


def blocks(text):
    """Markdown -> list of (line number, text): fences, and whatever else stands between two empty lines."""
    return [(text.count("\n", 0, m.start()) + 1, m[0].rstrip("\n"))
            for m in re.finditer(r"^```[\s\S]*?^```$|(?:^.+\n?)+", text, re.MULTILINE)]


# --- what the two must share: each function takes a block and returns a list ----------------------

def shape(block):
    """What kind of block it is, how deep a heading, how many cells in each row of a table."""
    if block.startswith("#"):
        return [block.split()[0]]
    if block.startswith("|"):
        return [f"a row of {row.count('|') - 1} cells" for row in block.splitlines()]
    kinds = {"```text": "output", "```": "commands", "    ": "output", "![": "picture", "<!--": "mark", "[": "link"}
    return [next((kind for start, kind in kinds.items() if block.startswith(start)), "sentences")]


def commands(block):
    """The lines of a fence, without their comments, which are translated. Output is the same to the last space."""
    if shape(block) == ["output"]:
        return block.splitlines()
    return [re.sub(r"(^|\s+)#.*", "", line) for line in block.splitlines()] if block.startswith("```") else []


def figures(block):
    """The numbers of each cell of a table, row by row."""
    rows = [row.split("|")[1:-1] for row in block.splitlines()] if block.startswith("|") else []
    return [f"{' '.join(re.findall(NUMBER, cell))} (row {i}, cell {j})"
            for i, row in enumerate(rows, 1) for j, cell in enumerate(row, 1)]


def numbers(block):
    """Those of a sentence, in whatever order its language puts them."""
    return [] if block.startswith(("|", "```")) else sorted(re.findall(NUMBER, block))


def code(block):
    """`flags`, `files`, `names` in sentences and cells; where a line ends does not matter."""
    return [] if block.startswith("```") else sorted(" ".join(c.split()) for c in re.findall(CODE, block))


def links(block):
    """Where links and pictures lead, but for those to headings."""
    return [] if block.startswith("```") else sorted(re.findall(r"\]\(([^)#\s]+)\)", block))


def sections(text):
    """The blocks of a text, in a list for each heading and what is below it."""
    parts = [[]]
    for line, block in blocks(text):
        if block.startswith("#"):
            parts.append([])
        parts[-1].append((line, block))
    return parts


def differences(facts, english, chinese):
    """The first block of each section whose facts differ -> list of texts; after a lost block nothing fits there."""
    wrong = []
    for section_a, section_b in zip_longest(sections(english), sections(chinese), fillvalue=[]):
        for (i, a), (j, b) in zip_longest(section_a, section_b, fillvalue=("end of section", "")):
            here, there = facts(a), facts(b)
            if here != there:
                more, less = Counter(here) - Counter(there), Counter(there) - Counter(here)
                wrong.append(f"README.md:{i} alone has {list(more.elements())}, README.zh.md:{j} alone has "
                             f"{list(less.elements())}" + ("" if more or less else ": in another order"))
                break
    return wrong


def test_each_begins_with_a_link_to_the_other():
    assert "(README.zh.md)" in TEXTS["README.md"][:200] and "(README.md)" in TEXTS["README.zh.md"][:200]


@pytest.mark.parametrize("facts", [shape, commands, figures, numbers, code, links], ids=lambda f: f.__name__)
def test_the_translation_keeps_step(facts):
    """Whoever changes README.md changes the same block of README.zh.md; this says which."""
    english = TEXTS["README.md"].replace("[中文](README.zh.md)", "[English](README.md)")
    wrong = differences(facts, english, TEXTS["README.zh.md"])
    assert not wrong, "\n".join(wrong)


SAMPLE = """# Title

With `--B=4` 6.2 GB, on a T4 [too](LICENSE).

## Section

```
python train_gpt2.py --B=4   # 8 GB
```

| card | hours |
|---|---|
| H100 | 6.0 of 8 |

```text
loss: 4.852290
```
"""


@pytest.mark.parametrize("facts, old, new, line", [
    (shape, "## Section", "### Section", 5),
    (shape, "| H100 | 6.0 of 8 |\n", "", 11),
    (commands, "--B=4   # 8 GB", "--B=5   # 8 GB", 7),
    (commands, "4.852290", "4.852291", 15),
    (figures, "6.0 of 8", "8 of 6.0", 11),
    (numbers, "6.2 GB", "6.3 GB", 3),
    (code, "`--B=4`", "`--b=4`", 3),
    (links, "(LICENSE)", "(LICENCE)", 3),
], ids=lambda v: getattr(v, "__name__", ""))
def test_one_wrong_character_is_noticed(facts, old, new, line):
    """The comparison itself: nothing in equal texts, the line of the block where they are made to differ."""
    assert differences(facts, SAMPLE, SAMPLE) == [] and SAMPLE.count(old) == 1
    [found] = differences(facts, SAMPLE, SAMPLE.replace(old, new))
    assert found.startswith(f"README.md:{line} ")


@pytest.mark.parametrize("old, new", [("on a T4", "on a V100"), ("# 8 GB", "# eight"), ("card", "model")])
def test_words_may_differ(old, new):
    """Names, comments and words are for the translator."""
    for facts in (shape, commands, figures, numbers, code, links):
        assert differences(facts, SAMPLE, SAMPLE.replace(old, new)) == []


def test_links_to_headings_lead_to_the_same_ones():
    """The n-th link to a heading in one leads to the same heading, counted from above, as the n-th in the other."""
    targets = []
    for name, text in TEXTS.items():
        headings = re.findall(r"^#+ (.*)$", re.sub(r"^```[\s\S]*?^```$", "", text, flags=re.MULTILINE), re.MULTILINE)
        # as GitHub makes anchors: lower case, without punctuation, hyphens for spaces
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        found = re.findall(r"\]\(#([^)\s]+)\)", text)
        assert set(found) <= set(anchors), f"{name} has no heading for {sorted(set(found) - set(anchors))}"
        targets.append([anchors.index(anchor) for anchor in found])
    assert targets[0] == targets[1]


def test_every_sentence_is_chinese():
    """Neither a block of sentences nor a comment of a command has been left in English."""
    for line, block in blocks(TEXTS["README.zh.md"]):
        if shape(block) == ["sentences"]:
            assert re.search(r"[\u4e00-\u9fff]", block), f"README.zh.md:{line}"
        for comment in re.findall(r"\s# (.*)$", block, re.MULTILINE) if block.startswith("```") else []:
            assert re.search(r"[\u4e00-\u9fff]|^\d+ GB$", comment), f"README.zh.md:{line}: {comment}"


def test_bold_is_bold():
    """After a full-width stop ** ends bold type only before a space or another sign, says CommonMark."""
    sign, wrong = r"[，。、：；？！（）“”《》]", []
    for line, block in blocks(TEXTS["README.zh.md"]):
        for bold in re.finditer(rf"\*\*[^*]+{sign}\*\*(?=[^\s\W])", re.sub(CODE, "x", block)):
            wrong.append(f"README.zh.md:{line}: {bold[0]}")
    assert wrong == []
