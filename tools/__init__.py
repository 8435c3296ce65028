"""
Programs for those who work on the project; each says more with --help.

    python tools/bench.py           speed and memory of every part, and the report on a rented card
    python tools/card_log.py        makes assets/h200.json from the log of a card
    python tools/chapters.py        lists the chapters of the history, runs them as they were
    python tools/concepts.py        computes the numbers and draws the pictures of docs/concepts.md
    python tools/compare.py         I changed something: did it help? Two versions, seed by seed
    python tools/finetune_table.py  makes the table of docs/finetuning.md
    python tools/laptop_curve.py    ten seeds of the laptop preset: what is normal there
    python tools/pictures.py        draws the pictures of the docs

The bench in pieces:

    tools/parts.py                  the parts of the bench
    tools/measure.py                the clock, the memory, and contenders
    tools/children.py               processes that may die
"""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
