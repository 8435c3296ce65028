"""
How large is a GPT, how much work is a token, how much memory does training take? All computed from
the settings: nothing here builds a model or asks a GPU. Like tokenizer.py, this file is part of the
lecture. Come here, too, to see what a number of --estimate or of the step line is made of.

Contents
    1 parameters    count_parameters
    2 work          flops_per_token; mfu, the share of a GPU's peak
    3 memory        what each phase of a run needs: a step, the evals, samples, saving
    4 what fits     the text of --estimate, and its table of batch sizes

Letters
    C n_embd   L n_layer   V vocab_size   N number of parameters   B, T rows and tokens in a row
"""
import re
from dataclasses import replace
from typing import NamedTuple

SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")  # what a model's weights fix

# --------------------------------------------------------------------------------------------------
# 1 parameters


def block_parameters(C):
    """Number of parameters of a block: 12 C^2 weights, and 13 C biases and gains"""
    attention = 4 * C * C + 4 * C  # c_attn: C to 3 C; c_proj: C to C
    mlp = 8 * C * C + 5 * C  # c_fc: C to 4 C; c_proj: 4 C to C
    norms = 4 * C  # two, each with a gain and a bias
    return attention + mlp + norms


def count_parameters(config):
    """
    Number of parameters of a GPT. For GPT-2 (124M), with V = 50,304:
        wte, wpe    (50304 + 1024) * 768                    39,419,904
        blocks      12 * (12 * 768^2 + 13 * 768)            85,054,464
        ln_f        2 * 768                                      1,536
    """
    C = config.n_embd
    embeddings = (config.vocab_size + config.block_size) * C  # lm_head shares wte's matrix
    return embeddings + config.n_layer * block_parameters(C) + 2 * C


# --------------------------------------------------------------------------------------------------
# 2 work


def flops_per_token(config, T):
    """
    Floating-point operations to train on one token in a row of T tokens (Chowdhery et al. 2022,
    appendix B): 8.55e8 for GPT-2 (124M) at T = 1024.

    In the forward pass each weight is multiplied once and added once: 2 FLOPs. The backward pass
    costs twice as much, because it computes gradients of the inputs and of the weights. That makes
    6 for each weight. Position embeddings are only looked up, so they do not count; wte does,
    because it is also the head. Biases and norms are too small to matter.

    Attention has no weights: q k^T and the weighted sum of the values take 2 C FLOPs each for every
    token that is looked at, in each layer, forward, and three times that with backward. By
    convention all T tokens count, although causal attention looks at half of them on average.
    """
    weights = count_parameters(config) - config.block_size * config.n_embd
    attention = 3 * config.n_layer * (2 + 2) * config.n_embd * T
    return 6 * weights + attention


# dense TFLOP/s in 16 bits, from the makers' data sheets. (The figures "with sparsity" are twice as
# large.)
PEAKS = {
    "V100-SXM2": 125, "T4": 65, "A10": 125, "A100": 312, "L4": 121, "L40S": 362, "RTX 3090": 71,
    "RTX 4090": 165, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 835, "H200": 989,
    "B200": 2250,
}


def mfu(card, config, T, tokens_per_second):
    """
    Model FLOPs utilization: the share of the GPU's peak that the model's own FLOPs make up
    -> " | mfu 41.2%", or "" for a GPU that is not in PEAKS. card: its name in
    torch.cuda.get_device_name, such as "NVIDIA H100 80GB HBM3"
    """
    # a Ti, a laptop's GPU or a MIG slice contains the name of a card whose peak it does not have
    other_card = r"(?!.*\b(Ti|D|SUPER|Laptop|Max-Q|MIG)\b)"
    names = [name for name in PEAKS if re.search(rf"\b{name}\b{other_card}", card)]
    if not names:
        return ""
    peak_flops = PEAKS[max(names, key=len)] * 1e12  # "H100 PCIe" also contains "H100"
    share = flops_per_token(config, T) * tokens_per_second / peak_flops
    return f" | mfu {100 * share:.1f}%"


# --------------------------------------------------------------------------------------------------
# 3 memory. A GPU holds, in this order:
#
#     the state       weights, gradients and AdamW's two moments, all the time
#     copies          weights in 16 bits, or gathered from other GPUs, during a forward
#     activations     what the blocks compute; for backward, nearly all of it is kept
#     logits          V numbers for each token: with 50,304 of them, often the largest tensor
#
# The functions return {what: Need}. `size` is the number of bytes of a number in the matmuls:
# 2 for bfloat16 and float16, 4 for float32. A test counts the same bytes tensor by tensor.


class Need(NamedTuple):
    """What one kind of tensor takes."""
    bytes: float
    formula: str  # how it was computed, for --estimate


def total(needs):
    """{what: Need} -> bytes"""
    return sum(need.bytes for need in needs.values())


def state_needs(gpt_config, config, n):
    """What each of n GPUs holds in every phase -> {what: Need}"""
    N = count_parameters(gpt_config)
    trains = config.max_steps > 0
    # in float32: a weight, its gradient, two moments; evaluation needs the weight alone
    each = 16 if trains else 4
    shares = {"no": 1, "node": min(n, 8), "all": n}[config.shard]
    if config.offload:
        needs = {"state": Need(0, "weights, gradients and moments are in the CPU's memory")}
    else:
        divided = f" / {shares}" if shares > 1 else ""
        needs = {"state": Need(each * N / shares, f"{each} bytes * {N / 1e6:.0f}M{divided}")}
    if n > 1 and config.shard == "no" and trains:
        # zero_grad frees the gradients before each step, and the new ones do not lie in the
        # buckets that DDP averages
        needs["DDP's buckets"] = Need(4 * N, f"4 bytes * {N / 1e6:.0f}M")
    if n > 1:
        needs["NCCL's buffers"] = Need(1e9, "0.5 to 1 GB")
    return needs


def copy_needs(gpt_config, config, size, each):
    """Copies of weights that a forward makes. each: bytes for a weight gathered under --shard"""
    C, N = gpt_config.n_embd, count_parameters(gpt_config)
    needs = {}
    if size == 2:  # autocast keeps them until the forward ends, or for backward
        needs["16-bit weights"] = Need(2 * N, f"2 bytes * {N / 1e6:.0f}M")
    if config.shard != "no":  # the embeddings stay, a block is gathered while another computes
        gathered = C * (gpt_config.vocab_size + gpt_config.block_size) + 2 * block_parameters(C)
        needs["gathered"] = Need(each * gathered, f"{each} bytes * (embeddings + 2 blocks)")
    return needs


def step_needs(gpt_config, config, size, compiled):
    """Forward and backward of a micro-batch. compiled: is it? -> {what: Need}"""
    V, L, C = gpt_config.vocab_size, gpt_config.n_layer, gpt_config.n_embd
    tokens = config.B * config.T
    needs = copy_needs(gpt_config, config, size, each=8)  # a gathered weight and its gradient
    # what autograd keeps, in bytes for each token and channel. A block: its input and the MLP's
    # input, in float32; both norms' outputs, q, k, v, the output of attention, and the MLP's 4 C
    # before and after GELU, 14 C numbers in all. Compiled code keeps about as much
    block = 2 * 4 + (2 + 3 + 1 + 4 + 4) * size
    end = 4 + size  # ln_f's input and output
    if config.activation_checkpointing:  # of each block the input; the rest for one block at a time
        kept, formula = 4 * L + block + end, f"(4 * {L} + {block} + {end})"
    else:
        kept, formula = block * L + end, f"({block} * {L} + {end})"
    needs["activations"] = Need(tokens * C * kept, f"{tokens:,} tokens * {formula} * {C} bytes")
    # eager: backward holds log-softmax, its gradient and the logits' gradient at once, in float32.
    # Compiled: the logits alone. (GPT-2 (124M) at B = 64 took 31.1 GB in all on an H200.)
    each = size if compiled else 3 * 4
    needs["logits"] = Need(tokens * each * V, f"{tokens:,} tokens * {each} * {V:,}")
    return needs


def eval_needs(gpt_config, config, size, tokens):
    """A forward without backward, and without its logits -> {what: Need}"""
    C = gpt_config.n_embd
    needs = copy_needs(gpt_config, config, size, each=4)
    # most is alive in an MLP: the block's input, x, and its norm, in float32; the MLP's 4 C before
    # and after GELU
    each = 3 * 4 + (4 + 4) * size
    needs["activations"] = Need(tokens * C * each, f"{tokens:,} tokens * {each} * {C} bytes")
    return needs


def validation_needs(gpt_config, config, size):
    """At most 8,192 tokens at a time, see evaluate_val_loss in train_gpt2.py -> {what: Need}"""
    V = gpt_config.vocab_size
    tokens = config.T * min(config.B, max(1, 8192 // config.T))
    needs = eval_needs(gpt_config, config, size, tokens)
    # the logits, their copy in float32 if they have 16 bits, and log-softmax in float32
    each = 2 + 4 + 4 if size == 2 else 4 + 4
    needs["logits"] = Need(tokens * each * V, f"{tokens:,} tokens * {each} * {V:,}")
    return needs


# the largest batch of HellaSwag on CUDA, in tokens and in predicted tokens: see hellaswag.py
HELLASWAG_TOKENS, HELLASWAG_PREDICTIONS = 16384, 4096


def hellaswag_needs(gpt_config, config, size):
    """The largest batch, which does not depend on B -> {what: Need}"""
    V, tokens, predictions = gpt_config.vocab_size, HELLASWAG_TOKENS, HELLASWAG_PREDICTIONS
    needs = eval_needs(gpt_config, config, size, tokens)
    # for each token of a row: true or false, the same as a number, and that padded by the kernel
    row = min(tokens, gpt_config.block_size)
    each = 1 + 2 * size
    needs["mask"] = Need(tokens * row * each, f"{tokens:,} * {row:,} * {each}")
    # twice: the logits of a batch with a few predictions more do not fit into the block of memory
    # that an earlier batch has freed, and PyTorch keeps that block. (The float32 copies, 256
    # predictions at a time, fit into what the activations have freed.)
    needs["logits"] = Need(2 * predictions * size * V, f"2 * {predictions:,} * {size} * {V:,}")
    return needs


def samples_needs(gpt_config, config, size):
    """Four rows of at most 208 tokens, see print_samples in train_gpt2.py -> {what: Need}"""
    V, tokens = gpt_config.vocab_size, 4 * min(208, gpt_config.block_size)
    needs = eval_needs(gpt_config, config, size, tokens)
    needs["logits"] = Need(tokens * size * V, f"{tokens:,} tokens * {size} * {V:,}")
    return needs


def save_needs(gpt_config, config):
    """The state moves to the CPU tensor by tensor; shares are first gathered -> {what: Need}"""
    if config.shard == "no":
        return {}
    V, C = gpt_config.vocab_size, gpt_config.n_embd
    return {"a whole tensor": Need(2 * 4 * V * C, f"2 * 4 bytes * {V:,} * {C}")}


def phases(gpt_config, config, n, dtype="bfloat16", hellaswag=True, compiled=False):
    """
    What each phase of a run needs on each of n GPUs -> {phase: {what: Need}}, with the phases step,
    validation, hellaswag (if measured), samples and save. A run with --max_steps=0 has neither step
    nor save.
        dtype     of the matmuls
        compiled  is the step compiled? The evals never are
    """
    size = 4 if dtype == "float32" else 2
    own = {}
    if config.max_steps > 0:
        own["step"] = step_needs(gpt_config, config, size, compiled)
    own["validation"] = validation_needs(gpt_config, config, size)
    if hellaswag:
        own["hellaswag"] = hellaswag_needs(gpt_config, config, size)
    own["samples"] = samples_needs(gpt_config, config, size)
    if config.max_steps > 0:
        own["save"] = save_needs(gpt_config, config)
    result = {}
    for phase, needs in own.items():
        result[phase] = with_allowance({**state_needs(gpt_config, config, n), **needs})
    return result


def with_allowance(needs):
    """Add room for CUDA itself, workspaces of kernels and gaps between tensors -> {what: Need}"""
    return {**needs, "allowance": Need(1e9 + 0.1 * total(needs), "1 GB + 10%")}


def peak(gpt_config, config, n, dtype="bfloat16", hellaswag=True, compiled=False):
    """The phase that needs the most -> its name, its bytes"""
    needs = phases(gpt_config, config, n, dtype, hellaswag, compiled)
    highest = max(needs, key=lambda phase: total(needs[phase]))
    return highest, total(needs[highest])


# --------------------------------------------------------------------------------------------------
# 4 what fits

CARDS = (8, 16, 24, 40, 80)  # GB of the GPUs in the table
FILLED = 0.93  # plan with this share of the free memory


def is_compiled(config):
    """Is the step compiled, on a GPU that can? Under --shard it is not."""
    return config.compile is not False and config.shard == "no"


def memory_text(gpt_config, config):
    """For --estimate: what these settings need on 1, 2, 4 and 8 GPUs, phase by phase -> text"""
    compiled = is_compiled(config)
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    flags = [f"B {config.B}", f"T {config.T}", f"--shard={config.shard}"]
    flags += ["--offload"] if config.offload else []
    flags += ["--activation_checkpointing"] if config.activation_checkpointing else []
    lines = [", ".join(flags)]
    before = None
    for n in (1, 2, 4, 8):
        needs = phases(gpt_config, config, n, dtype, config.hellaswag, compiled)
        phase, most = peak(gpt_config, config, n, dtype, config.hellaswag, compiled)
        fitting = [f"{card} GB" for card in CARDS if most <= FILLED * card * 1e9]
        line = (f"{n} GPU(s): {most / 1e9:.1f} GB each ({phase}), fits "
                f"{', '.join(fitting) or f'none of {CARDS[0]} to {CARDS[-1]} GB'}")
        if needs == before:
            lines.append(line + ", as above")
        else:
            lines += [line, *map(phase_line, needs, needs.values())]
        before = needs
    lines.append(f"computed, not measured; weights and optimizer in float32, matmuls in {dtype}, "
                 f"the step {'' if compiled else 'not '}compiled. Fits: at most {FILLED:.0%} of a "
                 "card")
    return "\n".join(lines)


def phase_line(phase, needs):
    """phase, {what: Need} -> "    step  4.5 = state 1.99 (16 bytes * 124M); ..." """
    terms = [f"{what} {need.bytes / 1e9:.2f} ({need.formula})" for what, need in needs.items()]
    return f"    {phase:10} {total(needs) / 1e9:5.1f} = {'; '.join(terms)}"


def batch_table(gpt_configs, config):
    """
    For --estimate: the largest B for each model and card, with the flags that it takes -> text, a
    Markdown table. gpt_configs: {name: GPTConfig}
    """
    lines = ["| preset | GPUs | " + " | ".join(f"{card} GB" for card in CARDS) + " |",
             "|---" * (2 + len(CARDS)) + "|"]
    for name, gpt_config in gpt_configs.items():
        for n in (1, 2, 4, 8):
            cells = [largest_batch(gpt_config, config, n, card) for card in CARDS]
            lines.append(f"| {name} | {n} | " + " | ".join(cells) + " |")
    lines.append("\nThe largest B that fits, and the flags that it needs: s --shard, "
                 "a --activation_checkpointing, o --offload. Computed, not measured.")
    return "\n".join(lines)


def largest_batch(gpt_config, config, n, card):
    """
    The largest B, a power of two, on n GPUs with `card` GB each -> text: "16", "4 sa", or "-" if
    none fits. Flags are added until B reaches 4, or as long as they help.
    """
    best_B, best_flags = 0, ""
    for flags in ("", "a", "s", "sa", "so", "sao"):
        if n == 1 and flags in ("s", "sa"):
            continue  # one GPU has nobody to share with
        trial = replace(config, shard="all" if "s" in flags else "no", offload="o" in flags,
                        activation_checkpointing="a" in flags)
        for B in (64, 32, 16, 8, 4, 2, 1):
            _, needed = peak(gpt_config, replace(trial, B=B), n, compiled=is_compiled(trial))
            if needed <= FILLED * card * 1e9:
                break
        else:
            B = 0
        if B > best_B:
            best_B, best_flags = B, flags
        if best_B >= 4:
            break
    return f"{best_B} {best_flags}".strip() if best_B else "-"
