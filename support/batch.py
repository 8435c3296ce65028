"""
B, the rows of a micro batch: what divides a step, and what fits into the card. Come here when a run
takes another B than you expect, or says that none fits.
"""
import math
from dataclasses import replace

from support.arithmetic import FILLED, peak
from support.console import UserError, print0


def choose_batch(plan, process, free):
    """
    The B that was given. Or the largest, up to the preset's or the checkpoint's, for which a whole
    number of micro steps makes a batch, and which fits. free: bytes that are free on the fullest
    card, infinite if there is no card to ask -> B, micro steps. Or a UserError.
    """
    config = plan.config
    given = "B" in plan.given_flags
    row = config.T * process.num_processes  # tokens a step at B = 1
    candidates = [config.B] if given else range(config.B, 0, -1)
    dividing = [B for B in candidates if config.total_batch_size % (B * row) == 0]
    if not dividing:
        unit = config.B * row if given else row
        nearest = unit * max(1, round(config.total_batch_size / unit))
        raise UserError(f"total_batch_size {config.total_batch_size} is not a multiple of B * T * "
                        f"processes = {unit}: try --total_batch_size={nearest}")
    B = dividing[0]
    if B < config.B:
        print0(f"B {B}: the largest up to {config.B} of which whole micro batches make "
               f"{config.total_batch_size} tokens on {process.num_processes} process(es)")
    if not given and free < math.inf:
        B = largest_that_fits(dividing, plan, process, free)
    return B, config.total_batch_size // (B * row)


def largest_that_fits(candidates, plan, process, free):
    """The first of these B, the largest first, whose highest phase fits; says why -> B"""
    dtype = str(process.dtype).removeprefix("torch.")
    free_text = f"{free / 1e9:.1f} GB free"
    larger = ""
    for B in candidates:
        config = replace(plan.config, B=B)
        phase, needed = peak(plan.gpt_config, config, process.num_processes, dtype,
                             plan.with_hellaswag)
        if needed <= FILLED * free:
            print0(f"B {B}: needs {needed / 1e9:.1f} of {free_text}{larger}")
            return B
        larger = f"; {B} would need {needed / 1e9:.1f}"
    raise UserError(f"even with --B=1 a run needs {needed / 1e9:.1f} ({phase}) of {free_text} on "
                    "the fullest card: try --activation_checkpointing, --shard on several GPUs, "
                    "or --shard --offload")
