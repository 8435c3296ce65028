"""
Programs for those who work on the project; each says more with --help.

    python tools/bench.py         measures every part beside what one would run instead
    python tools/gpu_report.py    one command for a rented card: speed, memory, all in report.md
    python tools/chapters.py      lists the chapters of the history, runs them as they were
    python tools/faults.py        kills training runs, does what clumsy people do: nothing is lost
    python tools/finetune_table.py  makes the table of docs/finetuning.md
    python tools/laptop_curve.py  ten seeds of the laptop preset: what is normal there
    python tools/pictures.py      draws the pictures of the docs

And what they share:

    tools/measure.py              the clock, the memory, and what is measured
    tools/children.py             processes that measure, and may die
"""
