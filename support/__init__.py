"""
Nothing here teaches GPT-2. Come when something fails, or when you want to know how a call into
support does it.

    console.py       one way to speak and one way to fail: UserError, print0, progress, run_program
    files.py         files that are whole or not there: atomic_write, checked zip files
    settings.py      flags -> checked dataclasses; what was given, what a checkpoint says, who wins
    tokenizer.py     text <-> ids: gpt2, char, bpe, tokenizer.json; and as Hugging Face's files
    shards.py        a directory of shards: headers, meta.json, checksums, its tokenizer
    arithmetic.py    parameters, FLOPs, memory, MFU: computed, with the arithmetic shown
    attention.py     kernels for shapes that come once, as those of evals and samples
    batch.py         B: what divides a step, and what fits into the card
    checkpoints.py   find, verify, restore, rotate
    identity.py      which run is this? its number, and the launch of torchrun that it belongs to
    hugging_face.py  config.json and model.safetensors, in and out
    runlog.py        the record of a run: log.txt, settings.json; writing it and reading it
    processes.py     signals, where processes meet, cards this build has no code for
    sharding.py      FSDP2 for models too large for one card
    compiling.py     torch.compile, tried once before it is relied on
    health.py        is my run normal? reference curves, bad numbers, time left
    tasks.py         the files of a task: items, read and checked line by line
    metrics.py       how good are the answers? accuracy, F1, correlations, ranks; BM25
    shakespeare.py   the speeches in input.txt as the items of a task
"""
