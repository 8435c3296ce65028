"""
B, the rows of a micro batch: what divides a step, and what fits into the card. Come here when a run
takes another B than you expect, or says that none fits.
"""
import math
from dataclasses import replace

from support.arithmetic import FILLED, peak, phases, total
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


def choose_items(config, plan, examples, process, free):
    """
    For finetune.py: how many items fit in a micro batch, and divide a process's share of a step.
    config: a TuneConfig; examples: those to learn from; free: as above -> B, micro steps. Or a
    UserError.
    """
    embeds = plan.task.name == "embed"
    share = config.batch // process.num_processes
    if share * process.num_processes != config.batch:
        raise UserError(f"--batch={config.batch} is not a multiple of {process.num_processes} "
                        f"processes: try --batch={max(1, share) * process.num_processes}")
    most = config.B or share
    if config.B == 0 and not embeds and process.card.kind == "cpu":
        most = 8  # more gain nothing on a CPU, and need more padding
    dividing = [B for B in range(min(most, share), 0, -1) if share % B == 0]
    if embeds:  # a passage that is alone has no negatives
        dividing = [B for B in dividing if B * process.num_processes > 1]
        if not dividing or config.B > 0 and config.B != dividing[0]:
            raise UserError(f"embed learns from the other items of a micro batch: try a --batch "
                            f"and a --B that divides it, as --batch={config.batch} --B={share}")
    if config.B > 0 or free == math.inf:
        return dividing[0], share // dividing[0]
    for B in dividing:
        needed = items_need(B, config, plan, examples, process)
        if needed <= FILLED * free:
            if embeds and B < share:
                print0(f"B {B}: more of the {share} items do not fit, so each has fewer negatives")
            return B, share // B
    raise UserError(f"{dividing[-1]} item(s) at a time need {needed / 1e9:.1f} of {free / 1e9:.1f} "
                    "GB free on the fullest card: try shorter texts, or a smaller --model")


def items_need(B, config, plan, examples, process):
    """The bytes of finetune.py's step with B items, if all are as long as the longest."""
    rows = max(len(example.rows) for example in examples)
    T = max(len(row) for example in examples for row in example.rows)
    dtype = str(process.dtype).removeprefix("torch.")
    shape = replace(process.config, B=B * rows, T=T)
    needs = phases(plan.gpt_config, shape, process.num_processes, dtype)["step"]
    # not in parts, as those of training: in 16 bits, float32, log-softmax (counted, see the tests)
    with_lm = config.lm_weight > 0 and plan.task.name != "embed"
    needs["logits"] = (12 * shape.B * T * plan.gpt_config.vocab_size * with_lm, "")
    return total(needs)
