"""
Reproduce GPT-2 (124M) from nothing, to be read top to bottom.

Letters in the comments on shapes
    B rows of a batch    T tokens of a row (time)    C channels, n_embd    nh heads, hs = C / nh    V vocabulary rows
"""
from dataclasses import dataclass

import torch.nn as nn

# ----------------------------------------------------------------------------------------------------
# 1 the model

@dataclass
class GPTConfig:
    block_size: int = 1024   # the longest context in tokens: the rows of wpe
    vocab_size: int = 50257  # rows of wte: 50,000 merges, 256 bytes and <|endoftext|>
    n_layer: int = 12        # blocks
    n_head: int = 12         # attention heads in a block
    n_embd: int = 768        # C, the width of the residual stream

class CausalSelfAttention(nn.Module):
    """The only place where a token learns of other tokens (Vaswani et al. 2017, section 3.2). (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # queries, keys and values of all heads, one matmul
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

class MLP(nn.Module):
    """Each token by itself thinks over what it has heard. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")  # exact GELU was slow in 2018's TensorFlow; the weights expect the tanh
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

class Block(nn.Module):
    """Communicate, then compute. Norms come before each part, so that the residual stream itself runs through clean."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019), with the parameter names of Hugging Face's GPT2LMHeadModel."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),  # what a token means
            wpe=nn.Embedding(config.block_size, config.n_embd),  # where it stands
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

def main():
    model = GPT(GPTConfig())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

if __name__ == "__main__":
    main()
