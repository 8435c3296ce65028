"""
Programs for those who work on the project; each says more with --help.

    python tools/bench.py      measures every part beside what one would run instead
    python tools/chapters.py   lists the chapters of the history, and runs them again as they were
    python tools/faults.py     kills training runs at random moments and shows that nothing is lost
"""
