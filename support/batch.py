"""
Choosing B, the number of rows in a micro-batch: it has to divide a step, and to fit into the
memory of the GPU. Come here when a run takes another B than you expect, or says that none fits.
"""
import math
from dataclasses import replace
from types import SimpleNamespace

import torch

from support.arithmetic import FILLED, Need, peak, state_needs, step_needs, total, with_allowance
from support.compiling import compiles_in_all_processes
from support.console import UserError, print0


def compile_and_choose_batch(model, gpt_config, config, max_B, process):
    """
    A collective. Choose B, and compile the model for it if process.compile. If that fails, choose
    again, because the logits take more memory in eager code -> B. UserError if no B will do.
    """
    limit_s = max(600, config.dist_timeout_s)  # another process may have a slower disk
    if process.compile:
        B = choose_batch(gpt_config, config, max_B, process, compiled=True)
        if compiles_in_all_processes(model, B, config.T, process, limit_s):
            return B
    return choose_batch(gpt_config, config, max_B, process, compiled=False)


def choose_batch(gpt_config, config, max_B, process, compiled):
    """
    config.B if it was typed. Otherwise the largest B up to max_B that divides a step into whole
    micro-batches and fits on the GPU with the least free memory. compiled: is the step compiled?
    -> B. UserError if no B will do.
    """
    row = config.T * process.num_processes  # tokens a step at B = 1
    candidates = range(max_B, 0, -1) if config.B is None else [config.B]
    dividing = [B for B in candidates if config.total_batch_size % (B * row) == 0]
    if not dividing:  # not the typed B, or not even B = 1
        unit = (config.B or 1) * row
        nearest = unit * max(1, round(config.total_batch_size / unit))
        raise UserError(f"total_batch_size {config.total_batch_size} is not a multiple of B * T * "
                        f"processes = {unit}: try --total_batch_size={nearest}")
    B = dividing[0]
    if config.B is not None:
        return B
    if B < max_B:
        print0(f"B {B}: the largest up to {max_B} of which whole micro-batches make "
               f"{config.total_batch_size} tokens on {process.num_processes} process(es)")
    free = process.card.free
    if free == math.inf:  # not a GPU
        return B
    dtype = str(process.dtype).removeprefix("torch.")
    code = "compiled" if compiled else "not compiled"
    larger = ""  # what the next larger B would need
    for B in dividing:
        phase, needed = peak(gpt_config, replace(config, B=B), process.num_processes, dtype,
                             config.hellaswag, compiled)
        if needed <= FILLED * free:
            print0(f"B {B}: needs {needed / 1e9:.1f} of {free / 1e9:.1f} GB free, "
                   f"{code}{larger}")
            return B
        larger = f"; {B} would need {needed / 1e9:.1f}"
    raise UserError(f"even with --B=1 a run needs {needed / 1e9:.1f} ({phase}) of "
                    f"{free / 1e9:.1f} GB free on the fullest card: try "
                    "--activation_checkpointing, --shard on several GPUs, or --shard --offload")


def choose_micro_batch(gpt_config, config, task, examples, process):
    """
    For finetune.py: the largest number of items that divides a process's share of a step and fits
    on the GPU with the least free memory. config: a TuneConfig; examples: the items to learn from
    -> B, number of micro-steps. UserError if no B will do.
    """
    embeds = task.num_outputs == 0
    share = config.batch // process.num_processes
    if share * process.num_processes != config.batch:
        raise UserError(f"--batch={config.batch} is not a multiple of {process.num_processes} "
                        f"processes: try --batch={max(1, share) * process.num_processes}")
    if config.B is not None and share % config.B != 0:
        raise UserError(f"--B={config.B} does not divide the {share} items that a process takes in "
                        f"a step: try --B={math.gcd(config.B, share)}")
    # on a CPU more than 8 gain nothing, and need more padding
    most = 8 if process.card.kind == "cpu" and not embeds else share
    dividing = [B for B in range(most, 0, -1) if share % B == 0]
    if config.B is not None:
        dividing = [config.B]
    if embeds:  # a passage alone in its micro-batch has no negatives
        dividing = [B for B in dividing if B * process.num_processes > 1]
        if not dividing:
            raise UserError("embed learns from the other items of a micro-batch, so it needs "
                            "several: try --batch=32 without --B")
    free = process.card.free
    if config.B is not None or free == math.inf:
        return dividing[0], share // dividing[0]
    for B in dividing:
        needed = items_need(B, gpt_config, config, task, examples, process)
        if needed <= FILLED * free:
            if embeds and B < share:
                print0(f"B {B}: all {share} items do not fit at once, so each has fewer negatives")
            return B, share // B
    raise UserError(f"{dividing[-1]} item(s) at a time need {needed / 1e9:.1f} of {free / 1e9:.1f} "
                    "GB free on the fullest card: try shorter texts, or a smaller --model")


def items_need(B, gpt_config, config, task, examples, process):
    """Bytes that a step of finetune.py needs with B items, if all are as long as the longest"""
    rows = B * max(len(example.rows) for example in examples)
    T = max(len(row) for example in examples for row in example.rows)
    plain = SimpleNamespace(B=rows, T=T, max_steps=1, shard="no", offload=False,
                            activation_checkpointing=False)
    size = 4 if process.dtype == torch.float32 else 2
    needs = {**state_needs(gpt_config, plain, process.num_processes),
             **step_needs(gpt_config, plain, size, compiled=False)}
    if config.lm_weight == 0 or task.num_outputs == 0:  # no language-model loss beside the task's
        needs["logits"] = Need(0, "")
    return total(with_allowance(needs))
