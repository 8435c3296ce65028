"""
Parameters, FLOPs, memory, MFU: computed, with the arithmetic shown. Come here to see what a number
of --estimate or of the step line is made of. Nothing here builds a model or asks a machine.
"""
import re
from dataclasses import replace

from support.settings import check_settings

CARDS = (8, 16, 24, 40, 80)  # GB of the cards that memory is computed for
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


def memory(gpt_config, config, n):
    """
    What training needs on each of n GPUs, in 16 bits -> {what: (bytes, the arithmetic as text)}.
    The activations are those that autograd keeps (counted with saved_tensors_hooks, see the tests);
    what the kernels borrow for a moment, CUDA itself and fragmentation are an allowance.
    """
    V, L, C = gpt_config.vocab_size, gpt_config.n_layer, gpt_config.n_embd
    N = count_parameters(gpt_config)
    tokens = config.B * config.T
    block = 12 * C * C + 13 * C  # parameters
    shares = 1 if config.shard == "no" else min(n, 8) if config.shard == "node" else n
    if config.offload:
        needs = {"state": (0, "weights, gradients and moments are in the CPU's memory")}
    else:  # float32: a weight, its gradient, two moments
        divided = f" / {shares}" if shares > 1 else ""
        needs = {"state": (16 * N / shares, f"16 bytes * {N / 1e6:.0f}M{divided}")}
    # autocast's copies, kept for backward
    needs["16-bit weights"] = (2 * N, f"2 bytes * {N / 1e6:.0f}M")
    # embeddings and two blocks, with their gradients, are whole for a moment
    if config.shard != "no":
        whole = 8 * (C * (V + gpt_config.block_size) + 2 * block)
        needs["gathered"] = (whole, "8 bytes * (embeddings + 2 blocks)")
    # a block keeps 36 C bytes a token: its input, that of its MLP (4 each), both after the norms (2
    # each), q, k, v (6), what attention says (2), the MLP's 4 C before and after GELU (8 each). Its
    # input alone (4), if it is done again
    if config.activation_checkpointing:
        kept, text = 4 * L + 36 + 6, f"(4 * {L} + 36 + 6)"
    else:
        kept, text = 36 * L + 6, f"(36 * {L} + 6)"
    needs["activations"] = (tokens * C * kept, f"{tokens:,} tokens * {text} * {C} bytes")
    # log-softmax in float32 of all tokens, and gradients for a piece of them at a time
    rows = max(1024, tokens // 8)
    needs["logits"] = ((tokens * 4 + rows * 10) * V, f"({tokens:,} * 4 + {rows:,} * 10) * {V:,}")
    needs["allowance"] = (1e9 + 0.1 * total(needs), "1 GB + 10%")
    return needs


def total(needs):
    """The bytes of what memory() returns."""
    return sum(size for size, _ in needs.values())


def memory_text(gpt_config, config):
    """
    What memory a GPU needs with these settings, on 1, 2, 4 and 8 of them -> text, each number with
    its arithmetic.
    """
    check_settings(gpt_config, config)
    flags = [f"B {config.B}", f"T {config.T}", f"--shard={config.shard}"]
    flags += ["--offload"] if config.offload else []
    flags += ["--activation_checkpointing"] if config.activation_checkpointing else []
    lines = [", ".join(flags)]
    for n in (1, 2, 4, 8):
        needs = memory(gpt_config, config, n)
        fits = [f"{card} GB" for card in CARDS if total(needs) <= card * 1e9]
        parts = "; ".join(f"{what} {size / 1e9:.2f} ({how})" for what, (size, how) in needs.items())
        lines.append(f"{n} GPU(s): {total(needs) / 1e9:.1f} GB each, fits "
                     f"{', '.join(fits) or 'none of ours'} = {parts}")
    lines.append("computed, not measured; the optimizer in float32, matmuls in 16 bits")
    return "\n".join(lines)


def largest(gpt_config, config, n, card):
    """
    The largest B, a power of two, with as few flags as it takes to reach 4, or else as many as help
    -> text
    """
    best = (0, "")
    for flags in ("", "a", "s", "sa", "so", "sao"):
        if n == 1 and flags in ("s", "sa"):
            continue  # alone there is nobody to share with
        for B in (64, 32, 16, 8, 4, 2, 1):
            trial = replace(config, B=B, shard="all" if "s" in flags else "no",
                            offload="o" in flags, activation_checkpointing="a" in flags)
            if total(memory(gpt_config, trial, n)) <= card * 1e9:
                best = max(best, (B, flags), key=lambda b: b[0])
                break
        if best[0] >= 4:
            break
    return f"{best[0]} {best[1]}".strip() if best[0] else "-"
