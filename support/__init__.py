"""
Nothing here teaches GPT-2, with two exceptions: the tokenizer and the arithmetic. Come here when
something fails, or when you want to know how a call into support works.

    run.py             what may interrupt a run: signals, exceptions, full disks, lack of memory
    runlog.py          log.txt and settings.json: writing and reading them
    checkpoints.py     find, verify, save, restore and delete checkpoints
    identity.py        the number of a run, and the launch of torchrun that it belongs to
    health.py          is my run normal? reference curves; losses that are nan
    console.py         printing and failing: UserError, print0, progress, run_program
    settings.py        command line -> frozen dataclasses: flags > checkpoint > preset > defaults
    tokenizer.py       text <-> ids: gpt2, char, bpe, tokenizer.json; Hugging Face's files
    shards.py          shards of tokens: headers, meta.json, checksums, their tokenizer
    arithmetic.py      parameters, FLOPs, memory and MFU, computed step by step
    batch.py           choosing B: it divides a step, and it fits on the GPU
    compiling.py       torch.compile: tried once, and left out if it fails
    attention.py       attention kernels for shapes that occur only once, as in evals
    processes.py       GPUs, how processes meet, sums over processes, signals
    sharding.py        FSDP2, for models too large for one GPU
    hellaswag_file.py  downloading HellaSwag and checking that it is complete
    hugging_face.py    config.json and model.safetensors, in and out
    files.py           writing files whole or not at all; zip files that are checked first
    tasks.py           the files of a fine-tuning task, read and checked line by line
    metrics.py         accuracy, F1, correlations, ranks; BM25
    shakespeare.py     the speeches in input.txt as the items of a task
"""
