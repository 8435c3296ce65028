"""
Parameters, FLOPs, memory, MFU: computed, with the arithmetic shown. Come here to see what a number
of --estimate or of the step line is made of. Nothing here builds a model or asks a machine.
"""
import re
from dataclasses import replace

# what the weights of a checkpoint fix
SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
CARDS = (8, 16, 24, 40, 80)  # GB of the cards that memory is computed for
FILLED = 0.93  # the share of the free memory to plan with: gaps between tensors take the rest
# HellaSwag's largest batch on CUDA, tokens and scored positions: see hellaswag.py
HELLASWAG_TOKENS, HELLASWAG_PREDICTIONS = 16384, 4096
PEAKS = {
    # dense TFLOP/s in 16 bits, by the maker's data sheets (not the sparse figures, which are twice
    # as large)
    "V100-SXM2": 125, "T4": 65, "A10": 125, "A100": 312, "L4": 121, "L40S": 362, "RTX 3090": 71,
    "RTX 4090": 165, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 835, "H200": 989,
    "B200": 2250,
}


def count_parameters(config):
    """
    How many numbers a GPT of this config has, without building it. 124,475,904 for 124M with 50,304
    rows
    """
    C = config.n_embd
    # 3 C^2 weights for q, k, v, 1 for c_proj, 8 in the MLP; biases and norms
    layer = 12 * C * C + 13 * C
    return C * (config.vocab_size + config.block_size + 2) + config.n_layer * layer


def flops_per_token(config, T):
    """
    Forward and backward of one token (Chowdhery et al. 2022, appendix B): 6 for each weight but
    wpe's, which is not multiplied with, and attention to T tokens, the causal half not taken off.
    8.55e8 for 124M at T = 1024.
    """
    n = count_parameters(config) - config.block_size * config.n_embd
    return 6 * n + 12 * config.n_layer * config.n_embd * T


def mfu(card, config, T, tokens_per_second):
    """
    What share of the card's peak the model's own arithmetic is -> " | mfu 41.2%"; "" for a card
    that is not in PEAKS. card: as torch.cuda.get_device_name calls it, "NVIDIA H100 80GB HBM3".
    """
    # a Ti, a laptop's chip or a slice of a card has the name of the card, and another peak
    other = r"(?!.*\b(Ti|D|SUPER|Laptop|Max-Q|MIG)\b)"
    names = [name for name in PEAKS if re.search(rf"\b{name}\b{other}", card)]
    if not names:
        return ""
    peak = PEAKS[max(names, key=len)] * 1e12
    return f" | mfu {100 * flops_per_token(config, T) * tokens_per_second / peak:.1f}%"


def held(gpt_config, config, n):
    """What is there in every phase of training -> {what: (bytes, the arithmetic as text)}"""
    N = count_parameters(gpt_config)
    shares = 1 if config.shard == "no" else min(n, 8) if config.shard == "node" else n
    # float32: a weight, its gradient, two moments. --max_steps=0 only evaluates: weights alone
    trains = config.max_steps > 0
    each = 16 if trains else 4
    if config.offload:
        needs = {"state": (0, "weights, gradients and moments are in the CPU's memory")}
    else:
        divided = f" / {shares}" if shares > 1 else ""
        needs = {"state": (each * N / shares, f"{each} bytes * {N / 1e6:.0f}M{divided}")}
    if n > 1 and config.shard == "no" and trains:
        # set to None before each step, gradients come anew beside the buckets that DDP averages
        needs["DDP's buckets"] = (4 * N, f"4 bytes * {N / 1e6:.0f}M")
    if n > 1:
        needs["NCCL's buffers"] = (1e9, "0.5 to 1 GB")
    return needs


def copies(gpt_config, config, size, each):
    """
    What a forward needs beside the held weights. size: bytes of a number of the matmuls; each:
    bytes for a gathered weight, with or without its gradient
    """
    V, C, N = gpt_config.vocab_size, gpt_config.n_embd, count_parameters(gpt_config)
    needs = {}
    if size == 2:  # autocast's, kept until the end of the forward, or for backward
        needs["16-bit weights"] = (2 * N, f"2 bytes * {N / 1e6:.0f}M")
    if config.shard != "no":  # embeddings and two blocks are whole for a moment
        gathered = C * (V + gpt_config.block_size) + 2 * (12 * C * C + 13 * C)
        needs["gathered"] = (each * gathered, f"{each} bytes * (embeddings + 2 blocks)")
    return needs


def step_needs(gpt_config, config, size, compiled):
    """
    Forward and backward of a micro-batch. The activations are those that autograd keeps (counted
    with saved_tensors_hooks, see the tests). Compiled code keeps about as much as eager code.
    """
    V, L, C = gpt_config.vocab_size, gpt_config.n_layer, gpt_config.n_embd
    tokens = config.B * config.T
    needs = copies(gpt_config, config, size, each=8)
    # a block keeps 36 C bytes a token in 16 bits: its input, that of its MLP (4 each), both after
    # the norms (2 each), q, k, v (6), what attention says (2), the MLP's 4 C before and after GELU
    # (8 each). In float32 all are 4 bytes: 64 C. Its input alone (4), if it is done again
    block, end = 8 + 14 * size, 4 + size
    if config.activation_checkpointing:
        kept, text = 4 * L + block + end, f"(4 * {L} + {block} + {end})"
    else:
        kept, text = block * L + end, f"({block} * {L} + {end})"
    needs["activations"] = (tokens * C * kept, f"{tokens:,} tokens * {text} * {C} bytes")
    # eager: log-softmax, its gradient and the logits' gradient are in float32, all at once in
    # backward. Compiled: only the logits (124M with B = 64 took 31.1 GB in all on an H200)
    each = size if compiled else 12
    needs["logits"] = (tokens * each * V, f"{tokens:,} tokens * {each} * {V:,}")
    return needs


def eval_needs(gpt_config, config, size, tokens, logits):
    """A forward that keeps nothing: logits are (bytes, text)."""
    C = gpt_config.n_embd
    needs = copies(gpt_config, config, size, each=4)
    # at most, in a block: x, its norm in float32 and in 16 bits, the MLP's 4 C before and after
    # GELU
    kept = 8 + 10 * size
    needs["activations"] = (tokens * C * kept, f"{tokens:,} tokens * {kept} * {C} bytes")
    needs["logits"] = logits
    return needs


def validation_needs(gpt_config, config, size):
    """At most 8,192 tokens at a time, never compiled: see evaluate_val_loss in train_gpt2.py."""
    V = gpt_config.vocab_size
    tokens = config.T * min(config.B, max(1, 8192 // config.T))
    # each logit, its log-softmax in float32, and, if the logit has 16 bits, its copy in float32
    each = 10 if size == 2 else 8
    logits = (tokens * each * V, f"{tokens:,} tokens * {each} * {V:,}")
    return eval_needs(gpt_config, config, size, tokens, logits)


def hellaswag_needs(gpt_config, config, size):
    """The largest batch, whatever B is. It is never compiled."""
    V, tokens, positions = gpt_config.vocab_size, HELLASWAG_TOKENS, HELLASWAG_PREDICTIONS
    logits = ((positions * size + 256 * 8) * V, f"({positions:,} * {size} + 256 * 8) * {V:,}")
    needs = eval_needs(gpt_config, config, size, tokens, logits)
    # who may look at whom: true or false, once more while it is put together, and as a number
    row = min(tokens, gpt_config.block_size)
    needs["mask"] = (tokens * row * (2 + size), f"{tokens:,} * {row:,} * {2 + size}")
    return needs


def samples_needs(gpt_config, config, size):
    """Four rows of at most 208 tokens, see print_samples in train_gpt2.py."""
    V, tokens = gpt_config.vocab_size, 4 * min(208, gpt_config.block_size)
    logits = (tokens * size * V, f"{tokens:,} tokens * {size} * {V:,}")
    return eval_needs(gpt_config, config, size, tokens, logits)


def save_needs(gpt_config, config):
    """The state goes to the CPU tensor by tensor. Shares of one are made whole first."""
    if config.shard == "no":
        return {}
    V, C = gpt_config.vocab_size, gpt_config.n_embd
    return {"a whole tensor": (8 * V * C, f"2 * 4 bytes * {V:,} * {C}")}


def phases(gpt_config, config, n, dtype="bfloat16", hellaswag=True, compiled=False):
    """
    What each phase of training needs on each of n GPUs -> {phase: {what: (bytes, the arithmetic as
    text)}}, with the phases step, validation, hellaswag (if it is measured), samples and save;
    without step and save for --max_steps=0. dtype: of the matmuls; compiled: is the step? What
    kernels borrow for a moment, CUDA itself and fragmentation are an allowance.
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
        result[phase] = {**held(gpt_config, config, n), **needs}
        result[phase]["allowance"] = (1e9 + 0.1 * total(result[phase]), "1 GB + 10%")
    return result


def total(needs):
    """The bytes of one phase of what phases() returns."""
    return sum(size for size, _ in needs.values())


def peak(gpt_config, config, n, dtype="bfloat16", hellaswag=True, compiled=False):
    """The phase that needs most -> its name, its bytes"""
    totals = {}
    for phase, needs in phases(gpt_config, config, n, dtype, hellaswag, compiled).items():
        totals[phase] = total(needs)
    highest = max(totals, key=totals.get)
    return highest, totals[highest]


def is_compiled(config):
    """Is the step compiled, on a GPU for which it can be? --shard excludes it."""
    return config.compile is not False and config.shard == "no"


def memory_text(gpt_config, config):
    """
    What memory a GPU needs with these settings, on 1, 2, 4 and 8 of them, phase by phase -> text,
    each number with its arithmetic.
    """
    compiled = is_compiled(config)
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    flags = [f"B {config.B}", f"T {config.T}", f"--shard={config.shard}"]
    flags += ["--offload"] if config.offload else []
    flags += ["--activation_checkpointing"] if config.activation_checkpointing else []
    lines = [", ".join(flags)]
    before = None
    for n in (1, 2, 4, 8):
        phase, most = peak(gpt_config, config, n, dtype, config.hellaswag, compiled)
        fits = [f"{card} GB" for card in CARDS if most <= FILLED * card * 1e9]
        lines.append(f"{n} GPU(s): {most / 1e9:.1f} GB each ({phase}), fits "
                     f"{', '.join(fits) or 'none of ours'}")
        all_needs = phases(gpt_config, config, n, dtype, config.hellaswag, compiled)
        if all_needs == before:
            lines[-1] += ", as above"
            continue
        before = all_needs
        for phase, needs in all_needs.items():
            parts = [f"{what} {size / 1e9:.2f} ({how})" for what, (size, how) in needs.items()]
            lines.append(f"    {phase:10} {total(needs) / 1e9:5.1f} = {'; '.join(parts)}")
    lines.append(f"computed, not measured; weights and optimizer in float32, matmuls in {dtype}, "
                 f"the step {'' if compiled else 'not '}compiled. Fits: at most {FILLED:.0%} of a "
                 "card")
    return "\n".join(lines)


def largest(gpt_config, config, n, card):
    """
    The largest B, a power of two, with as few flags as it takes to reach 4, or else as many as help
    -> text. The step is compiled, but not with --shard.
    """
    best = (0, "")
    for flags in ("", "a", "s", "sa", "so", "sao"):
        if n == 1 and flags in ("s", "sa"):
            continue  # alone there is nobody to share with
        for B in (64, 32, 16, 8, 4, 2, 1):
            trial = replace(config, B=B, shard="all" if "s" in flags else "no",
                            offload="o" in flags, activation_checkpointing="a" in flags)
            _, needed = peak(gpt_config, trial, n, compiled=is_compiled(trial))
            if needed <= FILLED * card * 1e9:
                best = max(best, (B, flags), key=lambda b: b[0])
                break
        if best[0] >= 4:
            break
    return f"{best[0]} {best[1]}".strip() if best[0] else "-"


def batch_table(gpt_configs, config):
    """
    The largest B for each model and card, and the flags that it needs -> text, a Markdown table.
    gpt_configs: {name: GPTConfig}
    """
    lines = ["| preset | GPUs | " + " | ".join(f"{card} GB" for card in CARDS) + " |",
             "|---" * (2 + len(CARDS)) + "|"]
    for name, gpt_config in gpt_configs.items():
        for n in (1, 2, 4, 8):
            cells = [largest(gpt_config, config, n, card) for card in CARDS]
            lines.append(f"| {name} | {n} | " + " | ".join(cells) + " |")
    lines.append("\nThe largest B that fits, and the flags that it needs: s --shard, "
                 "a --activation_checkpointing, o --offload. Computed, not measured.")
    return "\n".join(lines)
