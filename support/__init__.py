"""
What the programs need and a lecture on GPT-2 does not. Two files are part of the lecture all the
same: tokenizer.py (byte pair encoding) and arithmetic.py (parameters, FLOPs, memory). Come here
when something fails, or to learn what a call into support does.

    tokenizer.py       text <-> token ids: gpt2, char, BPE; text files; Hugging Face's files
    arithmetic.py      parameters, FLOPs, memory and MFU, computed step by step
    run.py             a run, and what may interrupt it: signals, exceptions, full disks
    runlog.py          the directory of a run: log.txt, settings.json, which run it belongs to
    checkpoints.py     find, read, restore, save and rotate checkpoints
    health.py          is my run normal? reference curves; losses that are nan
    processes.py       GPUs, how processes find each other, sums over processes, signals
    compiling.py       torch.compile, tried once; the kernels of attention in evals
    batch.py           choosing B: it divides a step, and it fits on the GPU
    sharding.py        FSDP2, for models that are too large for one GPU
    console.py         printing and failing: UserError, print0, progress, run_program
    files.py           writing a file completely or not at all; locks
    settings.py        command line -> frozen dataclasses: flags > checkpoint > preset > defaults
    prompts.py         the prompt on a command line: text, @file or stdin -> token ids
    shards.py          reading shards of tokens, meta.json and the tokenizer beside them
    shard_directory.py writing shards: names, meta.json, locks, resuming, --check
    hellaswag_file.py  downloading HellaSwag, and checking that it is complete
    hub.py             downloads from Hugging Face's hub or a mirror, and why they fail
    hugging_face.py    GPT-2 in Hugging Face's formats, in and out
    tasks.py           the files of a fine-tuning task, read and checked line by line
    metrics.py         accuracy, F1, correlations, ranks; BM25
    shakespeare.py     the speeches in input.txt as the items of a task
"""
