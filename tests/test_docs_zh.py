"""
Facts about README.zh.md and docs/zh/: they say in Chinese what the English pages say, section by section, with the same
commands, figures, tables and links. How many sentences that takes is up to the translator.
"""
import re
from collections import Counter
from itertools import zip_longest

import pytest
from pages import CHINESE, COMING, ENGLISH, FENCE, LINK, anchors, prose, resolve

CODE = r"`([^`]+)`"
# not the digits of names (GPT-2, H100): a pronoun may take their place in one of the languages
NUMBER = r"(?<![A-Za-z_\d])(?<![A-Za-z]-)(?<!\d[.,])\d+(?:[.,]\d+)*(?:e-?\d+)?"
# what readers in China ask first stands between these, and only in Chinese
ONLY_CHINESE = re.compile(r"<!-- zh -->.*?<!-- /zh -->\n*", re.DOTALL)


def english_page(page):
    """docs/zh/data.md -> docs/data.md"""
    return page.replace("docs/zh/", "docs/").replace("README.zh.md", "README.md")


def sections(text):
    """A page, cut before each heading -> list of texts"""
    fences = [fence.span() for fence in FENCE.finditer(text)]
    starts = [m.start() for m in re.finditer(r"^#+ ", text, re.MULTILINE)]
    starts = [at for at in starts if not any(start < at < end for start, end in fences)]
    return [text[a:b] for a, b in zip_longest(starts, starts[1:])]


def heading(section, page, pages):
    return [section.split()[0]]


def fences(section, page, pages):
    """The lines of each fence, without the comments of commands. Output is the same to the last space."""
    lines = []
    for language, text in FENCE.findall(section):
        for line in text.splitlines():
            lines.append(line if language == "text" else re.sub(r"(^|\s+)#(?!!|SBATCH).*", "", line))
    return lines


def cells(section, page, pages):
    """The numbers in each cell of the tables, row by row; not those of a link's address."""
    rows = re.findall(r"^\|(.*)\|$", LINK.sub("]", prose(section)), re.MULTILINE)
    return [f"{re.findall(NUMBER, cell)} (row {i}, cell {j})"
            for i, row in enumerate(rows, 1) for j, cell in enumerate(row.split("|"), 1)]


def numbers(section, page, pages):
    """Those in sentences, in whatever order the language puts them; not those of a link's address."""
    text = re.sub(r"^\|.*\|$", "", LINK.sub("]", prose(section)), flags=re.MULTILINE)
    return sorted(re.findall(NUMBER, text))


def code(section, page, pages):
    """`flags`, `files`, `names`; where a line ends does not matter."""
    return sorted(" ".join(c.split()) for c in re.findall(CODE, prose(section)))


def links(section, page, pages):
    """Where they lead: to the same page, and to the same heading of it, counted from above."""
    found = []
    for link in LINK.findall(prose(section)):
        path, anchor = resolve(link, page) if not link.startswith("http") else (link, "")
        number = anchors(pages[path]).index(anchor) if anchor else ""
        found.append(f"{english_page(path)} {number}")
    return sorted(found)


FACTS = (heading, fences, cells, numbers, code, links)


def differences(facts, page, english, chinese):
    """The sections whose facts differ -> list of texts"""
    wrong = []
    chinese = ONLY_CHINESE.sub("", chinese)
    for a, b in zip_longest(sections(english), sections(chinese), fillvalue="- missing"):
        here = facts(a, english_page(page), {**ENGLISH, english_page(page): english})
        there = facts(b, page, {**CHINESE, page: chinese})
        if here != there:
            more, less = Counter(here) - Counter(there), Counter(there) - Counter(here)
            title = a.splitlines()[0]
            wrong.append(f"{title}: English alone has {list(more.elements())}, Chinese alone {list(less.elements())}"
                         + ("" if more or less else ": in another order"))
    return wrong


def test_every_page_is_there_in_chinese():
    expected = {page for page in ENGLISH if page.replace("docs/", "docs/zh/") not in COMING}
    assert {english_page(page) for page in CHINESE} == expected


@pytest.mark.parametrize("facts", FACTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("page", CHINESE)
def test_the_translation_keeps_step(page, facts):
    """Whoever changes an English page changes the same section of the Chinese one; this says which."""
    english = ENGLISH[english_page(page)].replace("[中文](README.zh.md)", "[English](README.md)")
    wrong = differences(facts, page, english, CHINESE[page])
    assert not wrong, "\n".join(wrong)


SAMPLE = """# Title

With `--B=4` 6.2 GB, on a T4 [too](docs/faq.md).

| card | hours |
|---|---|
| H100 | 6.0 of 8 |

```
python train_gpt2.py --B=4   # 8 GB
```
"""


@pytest.mark.parametrize("facts, old, new", [
    (heading, "# Title", "## Title"), (fences, "--B=4   #", "--B=5   #"), (cells, "6.0 of 8", "8 of 6.0"),
    (numbers, "6.2 GB", "6.3 GB"), (code, "`--B=4`", "`--b=4`"), (links, "docs/faq.md", "docs/data.md"),
], ids=lambda v: getattr(v, "__name__", ""))
def test_one_wrong_character_is_noticed(facts, old, new):
    """The comparison itself: nothing in equal texts, the section where they are made to differ. Words may differ."""
    assert SAMPLE.count(old) == 1
    for same in (SAMPLE, SAMPLE.replace("# 8 GB", "# eight"), SAMPLE.replace("on a T4", "on a V100")):
        assert differences(facts, "README.zh.md", SAMPLE, same) == []
    [found] = differences(facts, "README.zh.md", SAMPLE, SAMPLE.replace(old, new))
    assert found.startswith("# Title: ")


@pytest.mark.parametrize("page", CHINESE)
def test_every_paragraph_is_chinese(page):
    """Neither a paragraph nor a comment of a command has been left in English."""
    chinese = r"[\u4e00-\u9fff]"
    for paragraph in re.split(r"\n\s*\n", prose(CHINESE[page])):
        markup = paragraph.startswith(("#", "    ", "![", "<!--", "|", "[English]"))
        assert markup or re.search(chinese, paragraph) or not paragraph.strip(), paragraph
    for language, text in FENCE.findall(CHINESE[page]):
        comments = re.findall(r"\s# (.*)$", text, re.MULTILINE) if language == "" else []
        assert all(re.search(rf"{chinese}|^\d+ GB$", comment) for comment in comments), text


@pytest.mark.parametrize("page", CHINESE)
def test_bold_is_bold(page):
    """After a full-width stop ** ends bold type only before a space or another sign, says CommonMark."""
    text = re.sub(CODE, "x", prose(CHINESE[page]))
    for last, following in re.findall(r"\*\*[^*\n]*([^*\n])\*\*(.?)", text):
        assert last not in "，。、：；？！（）“”《》" or re.match(r"[\s\W]|$", following), (last, following)


def test_the_two_readmes_lead_to_each_other():
    assert "(README.zh.md)" in ENGLISH["README.md"][:200] and "(README.md)" in CHINESE["README.zh.md"][:200]
