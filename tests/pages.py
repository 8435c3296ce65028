"""README.md and docs/, as the tests of both languages read them."""
import glob
import os
import re

from small_runs import ROOT

# Pages that are still being written: links to them may lead nowhere. Empty when they are there
COMING = set()

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def find_pages(*patterns):
    """The files that match -> {path from the root on: contents}"""
    found = sorted(path for pattern in patterns for path in glob.glob(os.path.join(ROOT, pattern)))
    pages = {}
    for path in found:
        with open(path, encoding="utf-8") as f:
            pages[os.path.relpath(path, ROOT).replace(os.sep, "/")] = f.read()
    return pages


ENGLISH = find_pages("README.md", "docs/*.md")
CHINESE = find_pages("README.zh.md", "docs/zh/*.md")


def prose(text):
    """A page without its fences, in which a # begins a comment and not a heading."""
    return FENCE.sub("", text)


def anchors(text):
    """What GitHub makes of the headings of a page: lower case, hyphens for spaces, no punctuation -> list"""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def resolve(link, page):
    """A link that stands on a page -> the path that it leads to, from the root on, and the anchor there ("")"""
    target, _, anchor = link.partition("#")
    if not target:
        return page, anchor
    return os.path.normpath(os.path.join(os.path.dirname(page), target)).replace(os.sep, "/"), anchor
