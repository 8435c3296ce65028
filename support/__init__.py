"""
Nothing here teaches GPT-2. Come when something fails, or when you want to know how a call into
support does it.

    console.py       one way to speak and one way to fail: UserError, print0, progress, run_program
"""
