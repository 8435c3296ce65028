"""
Reproduce GPT-2 (124M) from scratch: the model, the data, the evals and the training loop, to be
read top to bottom. It follows the lecture "Let's reproduce GPT-2 (124M)" and the code that came
with it, build-nanogpt.

    python train_gpt2.py --preset=laptop    # characters of Shakespeare, two minutes on a laptop
    python train_gpt2.py --preset=debug     # 124M parameters, 50 steps: does everything run here?
    python train_gpt2.py                    # the real run, after python fineweb.py
    torchrun --standalone --nproc_per_node=8 train_gpt2.py    # the same on eight GPUs
    python train_gpt2.py --resume=auto      # go on from the newest checkpoint in log/
    python train_gpt2.py --init_from=gpt2 --max_steps=0       # evaluate OpenAI's GPT-2

Contents
    1 the model         GPTConfig, CausalSelfAttention, MLP, Block, KVCache, GPT
    2 the settings      TrainConfig, every knob with its reason; PRESETS
    3 the data          load_tokens, load_data, DataLoaderLite
    4 many GPUs         Process, setup_distributed, all_reduce, choose_dtype, wrap_model
    5 the evals         evaluate_val_loss, evaluate_hellaswag, print_samples
    6 checkpoints       save_checkpoint, load_checkpoint, load_model
    7 training          get_lr, prepare, main: the set-up, then the loop with THE STEP
What is not part of this story (errors, flags, files, logs) lives in support/, and is only called
from here.

Letters in the comments on shapes
    B rows of a batch   T tokens of a row (time)   C channels, n_embd   nh heads, hs = C / nh
    V the vocabulary's size
"""
import math
import os
import re
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint as recompute

import hellaswag
from support import checkpoints, hugging_face
from support.arithmetic import memory_text, mfu
from support.attention import attention_for_any_shape
from support.batch import choose_batch
from support.compiling import check_cache, try_compiled
from support.console import (UserError, is_first_process, one_line, print0, print_here, progress,
                             run_program)
from support.files import atomic_write
from support.health import check_numbers, compare_to_reference
from support.identity import run_number
from support.processes import (Card, catch_signals, check_kernels, explain, find_card,
                               is_distributed, keep_freed_memory, meet, read_ranks)
from support.runlog import RunLog, open_log
from support.settings import check_length, check_settings, knob, merge_settings, parse_flags
from support.sharding import shard_model
from support.shards import list_shards, load_meta, open_shard
from support.tokenizer import saved_spec, tokenize_file

# --------------------------------------------------------------------------------------------------
# 1 the model


@dataclass
class GPTConfig:
    block_size: int = knob(1024, "the longest context in tokens: rows of the position embedding",
                            least=1)
    # GPT-2's 50,257 tokens, padded to a multiple of 128, which matmuls like
    vocab_size: int = knob(50304, "rows of the token embedding: the tokens, and padding", least=1)
    n_layer: int = knob(12, "blocks", least=1)
    n_head: int = knob(12, "attention heads in a block", least=1)
    n_embd: int = knob(768, "C, the width of the residual stream", least=1)
    # GPT-2 used 0.1; in about one epoch it hardly overfits
    dropout: float = knob(0.0, "the share of activations set to zero in training", below=1)


class CausalSelfAttention(nn.Module):
    """
    The only place where a token learns of other tokens (Vaswani et al. 2017, section 3.2).
    (B, T, C) -> (B, T, C)
    """

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.n_head = config.n_head
        self.dropout = config.dropout
        # queries, keys and values of all heads in one matmul
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True  # see GPT._init_weights
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, attention_mask=None, cache=None):
        """attention_mask and cache: as in GPT.forward"""
        B, T, C = x.size()
        # each token asks (query), says what it is about (key) and what it has to tell (value)
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        # each head has its own share of the channels
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if cache is not None:
            k, v = cache.add(self, k, v)  # (B, nh, past + T, hs)
        # softmax(q k^T / sqrt(hs)) v. With is_causal the i-th query sees the first i keys: right
        # for a text, but one new token after a cache must see every key. (For several new tokens
        # after a cache GPT.forward makes a mask)
        is_causal = attention_mask is None and T > 1
        dropout_p = self.dropout if self.training else 0.0
        # flash attention (Dao et al. 2022) never writes the (T, T) matrix to memory
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask,
                                           dropout_p=dropout_p, is_causal=is_causal)
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Works on each token by itself. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        # exact GELU was slow in 2018's TensorFlow; OpenAI's weights expect this approximation
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = self.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)


class Block(nn.Module):
    """
    Communicate, then compute. The norms stand inside the branches: the residual stream itself runs
    from the embeddings to the head with nothing on it but additions.
    """

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, attention_mask=None, cache=None):
        x = x + self.attn(self.ln_1(x), attention_mask, cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class KVCache:
    """
    For generation. The past does not see the future, so the keys and values of a token never
    change: computed once, they are kept here. (Not a plain dict: FSDP hands a block a copy of each
    dict that it is called with, and what is added to a copy is lost.)
    """

    def __init__(self, size):
        self.size = size  # how many tokens it has room for
        self.n = 0  # how many it holds; GPT.forward counts
        self.keys = {}  # attention layer -> (B, nh, size, hs)
        self.values = {}

    def add(self, layer, k, v):
        """Keep k, v (B, nh, T, hs) of T new tokens -> those of all tokens, (B, nh, n + T, hs)"""
        B, nh, T, hs = k.size()
        if layer not in self.keys:
            self.keys[layer] = k.new_empty(B, nh, self.size, hs)
            self.values[layer] = v.new_empty(B, nh, self.size, hs)
        end = self.n + T
        self.keys[layer][:, :, self.n : end] = k
        self.values[layer][:, :, self.n : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def sample(logits, temperature, top_k, top_p, generator):
    """Draw a token for each row: logits (B, V) -> ids (B, 1). The other arguments: GPT.stream"""
    if temperature < 1e-6:
        return logits.argmax(dim=-1, keepdim=True)
    # the long tail is noise, and one bad token derails all that follow
    values, ids = logits.topk(min(top_k, logits.size(1)))  # (B, top_k), the likeliest first
    probs = F.softmax(values / temperature, dim=-1)
    likelier = probs.cumsum(dim=-1) - probs  # the total probability of the likelier ones
    probs = probs.masked_fill(likelier >= top_p, 0.0)
    choice = torch.multinomial(probs, 1, generator=generator)  # (B, 1), an index into ids
    return ids.gather(1, choice)


# OpenAI's linear layers, called Conv1D, store (in, out), but nn.Linear (out, in): so these are
# transposed on the way in and out
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019), with the parameter names of Hugging Face's GPT2LMHeadModel."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # see wrap_model
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),  # what a token means
            wpe=nn.Embedding(config.block_size, config.n_embd),  # where it stands
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # tokens that mean the same should be equally likely to come next: one matrix for both
        # ends (Press and Wolf 2017). It is 38.6M of the 124M parameters
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """
        Normal with std 0.02, biases zero. (GPT-2's own code had 0.01 for wpe.)

        What to expect of a fresh 124M model: its logits have a std of sqrt(768) * 0.02 = 0.55, so
        it pays ln(50304) + 0.55**2 / 2 = 10.98 nats a token, a bit more than the 10.83 of a model
        that knows that it knows nothing. (Seed 1337 and FineWeb-Edu: 10.955.)
        """
        if isinstance(module, nn.Linear):
            std = 0.02
            if hasattr(module, "adds_to_residual"):
                # the residual stream starts with a variance of 2 * 0.02**2 = 0.0008 (wte and wpe),
                # and the 2 n_layer outputs of such layers are added to it. Unscaled, 12 blocks take
                # it to 2.4, more blocks further. Scaled, it ends at 0.08 to 0.09, with 6 blocks as
                # with 48 (GPT-2, section 2.3)
                std *= (2 * self.config.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None, positions=None, position_ids=None, attention_mask=None,
                cache=None):
        """
        idx (B, T), token ids -> what comes next at each position:
            model(idx)               logits (B, T, V), None
            model(idx, positions=p)  logits (n, V), None: only at p (n,), indices into idx.flatten()
            model(idx, targets)      None, the mean cross-entropy in nats a token, targets (B, T)
        position_ids (T,) or (B, T), below block_size: where a token stands in its text, by default
        0 to T-1. attention_mask (B, 1, T, T), bool: may the token of the third dimension look at
        that of the fourth? By default at itself and the past. (Not Hugging Face's mask, (B, T).)
        cache, instead of a mask: a KVCache with the tokens before idx; it takes up those of idx.
        """
        assert targets is None or positions is None, "a loss is over all positions"
        T = idx.size(1)
        past = 0 if cache is None else cache.n
        if position_ids is None:
            position_ids = torch.arange(past, past + T, device=idx.device)  # (T,)
        if past > 0 and T > 1:
            # several new tokens after a cache: each looks at all of it, and at idx up to itself
            everything = torch.ones(T, past + T, dtype=torch.bool, device=idx.device)
            attention_mask = everything.tril(diagonal=past)
        x = self.transformer.wte(idx) + self.transformer.wpe(position_ids)  # (B, T, C)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            if self.activation_checkpointing and self.training:
                x = recompute(block, x, attention_mask, cache, use_reentrant=False)
            else:
                x = block(x, attention_mask, cache)
        if cache is not None:
            cache.n += T

        if positions is not None:
            x = x.flatten(0, 1)[positions]  # (n, C)
        x = self.transformer.ln_f(x)
        if targets is not None:
            return None, self.mean_loss(x, targets)
        if cache is not None:
            # the same product in the other order: for few rows, as in generation, it is faster
            return (self.lm_head.weight @ x.mT).mT, None
        return self.lm_head(x), None  # (B, T, V), or (n, V)

    def mean_loss(self, x, targets):
        """
        x (B, T, C), targets (B, T) -> the mean cross-entropy. The logits are the largest tensors of
        a step. Backward needs one copy of them all; their casts and gradients exist for one part of
        the rows at a time. Not too many parts: each makes a gradient of the head's whole weight,
        and compiled code holds all of those until the end. (One product for all rows would make one
        gradient, but with B = 16 take 1.3 GB more, which a card of 16 GB does not have.)
        """
        x, targets = x.flatten(0, 1), targets.flatten()  # (B*T, C), (B*T,)
        n = max(1024, len(x) // 8)  # rows in a part
        loss = 0.0
        for part, answers in zip(x.split(n), targets.split(n), strict=True):
            logits = self.lm_head(part)  # (n, V)
            # in float32 whatever the logits are: bfloat16 keeps about three digits, and late in a
            # run a step changes only the sixth digit of the loss
            loss = loss + F.cross_entropy(logits.float(), answers, reduction="sum") / len(x)
        return loss

    @torch.no_grad()
    def stream(self, idx, n_vocab=None, temperature=1.0, top_k=50, top_p=1.0, generator=None):
        """
        Continue idx (B, T): yield the next token of each row (B, 1), forever. Only the top_k
        likeliest can be drawn, and of those only as many, likeliest first, as it takes to reach
        the probability top_p (Holtzman et al. 2020). temperature: below 1 safer, above 1 wilder, 0
        the likeliest token. n_vocab: the tokenizer's size; ids beyond it are padding, never drawn.
        """
        # how much of the text a new cache starts from: at first all that fits, after that half
        window = self.config.block_size
        cache = None
        while True:
            if cache is None:
                cache = KVCache(self.config.block_size)
                new = idx[:, -window:]
            # the last position of each row, among all B*T
            B, T = new.size()
            last = torch.arange(T - 1, B * T, T, device=idx.device)  # (B,)
            with attention_for_any_shape():
                logits, _ = self(new, positions=last, cache=cache)  # (B, V)
            new = sample(logits[:, :n_vocab].float(), temperature, top_k, top_p, generator)
            idx = torch.cat((idx, new), dim=1)
            yield new
            if cache.n == cache.size:
                # full: drop the older half. What stays has other positions now, so it is computed
                # anew
                window = cache.size - cache.size // 2
                cache = None

    def generate(self, idx, max_new_tokens, n_vocab=None, eot=None, **sampling):
        """
        idx (B, T) and what stream makes of it -> (B, T + max_new_tokens). With eot, the id of
        <|endoftext|>, nothing but eot follows the first one that is written.
        """
        tokens = self.stream(idx, n_vocab, **sampling)
        nothing = idx[:, :0]  # so that there is something to concatenate if max_new_tokens is 0
        new = torch.cat([nothing, *islice(tokens, max_new_tokens)], dim=1)
        if eot is not None:
            ended = (new == eot).cumsum(dim=1) > 0
            new = new.masked_fill(ended, eot)
        return torch.cat((idx, new), dim=1)

    @classmethod
    def from_pretrained(cls, name):
        """OpenAI's weights (gpt2 ... gpt2-xl, from the hub), or a directory like theirs -> GPT"""
        shape, theirs = hugging_face.read(name)
        weights = {}
        for key, w in theirs.items():
            if key.endswith(hugging_face.MASKS):
                continue  # the causal mask, a constant
            if not key.startswith(("transformer.", "lm_head.")):
                key = "transformer." + key  # some files leave it out
            weights[key] = w.t() if key.endswith(CONV1D) else w
        if "transformer.wte.weight" in weights:
            weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied, stored once
        model = cls(GPTConfig(**shape))
        checkpoints.load_weights(model, weights, name)
        return model

    def save_pretrained(self, folder, n_vocab=None, eot=50256):
        """
        The way back: a folder that Hugging Face's library can load. n_vocab: how many rows are
        tokens; the padding after them is left out.
        """
        weights = {}
        for key, w in self.state_dict().items():
            weights[key] = w.t() if key.endswith(CONV1D) else w
        head = weights.pop("lm_head.weight")[:n_vocab]
        weights["transformer.wte.weight"] = head  # tied, stored once
        shape = {**asdict(self.config), "vocab_size": len(head)}
        del shape["dropout"]
        hugging_face.write(folder, shape, eot, weights)

    def configure_optimizers(self, weight_decay, learning_rate, betas=(0.9, 0.95)):
        """AdamW (Loshchilov and Hutter 2019), with weight decay on matrices and embeddings only."""
        decay = [p for p in self.parameters() if p.dim() >= 2]
        no_decay = [p for p in self.parameters() if p.dim() < 2]  # biases and norms
        groups = [{"params": decay, "weight_decay": weight_decay},
                  {"params": no_decay, "weight_decay": 0.0}]
        # fused: one kernel for all tensors instead of several for each
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)


# --------------------------------------------------------------------------------------------------
# 2 the settings


@dataclass
class TrainConfig:
    preset: str = knob("gpt2", "a named set of values for both configs (PRESETS); given flags win")
    # what goes in and out
    data_root: str = knob("edu_fineweb10B", "a directory of token shards, or one text file")
    tokenizer: str = knob("gpt2", "for a text file: gpt2 (BPE) or char (one token a character)",
                          choices=("gpt2", "char"))
    log_dir: str = knob("log", "log.txt, settings.json, model_*.pt", here=True)
    tensorboard: bool = knob(False, "write the streams of log.txt for TensorBoard, too")
    init_from: str = knob("", "start from gpt2, gpt2-medium, gpt2-large, gpt2-xl, a .pt file or a "
                              "directory in Hugging Face's format", here=True)
    resume: str = knob("", "auto (the newest checkpoint in log_dir, if any) or a checkpoint's path",
                       here=True)
    # the machine
    device: str = knob("auto", "cuda, mps or cpu", here=True)
    dtype: str = knob("auto", "of the matmuls; the weights stay in float32",
                      choices=("auto", "bfloat16", "float16", "float32"))
    compile: bool | None = knob(None, "torch.compile, by default on CUDA only: it takes a minute")
    dist_timeout_s: int = knob(600, "seconds after which a process gives up on a silent one",
                               least=1, most=10**7)
    shard: str = knob("no", "for a model too large for one GPU: 'all' divides weights and "
                            "optimizer among all processes, 'node' among those of one machine; "
                            "--shard alone means all", choices=("no", "all", "node"), alone="all")
    offload: bool = knob(False, "with shard: weights and AdamW's moments in the CPU's memory")
    activation_checkpointing: bool = knob(False, "forget a block's activations, compute them again "
                                                 "in backward")
    estimate: bool = knob(False, "print what memory these settings need on 1 to 8 GPUs, and end",
                          here=True)
    # the batch. 524,288 is 2**19, about the 0.5M tokens of the GPT-3 paper (table 2.1)
    total_batch_size: int = knob(524288, "tokens a step", least=1)
    B: int = knob(64, "rows in a micro batch: what fits; it does not change the result", least=1)
    T: int = knob(1024, "tokens in a row", least=1)
    # the optimization
    max_steps: int = knob(19073, "steps of the run")  # 10e9 tokens / 2**19 tokens a step
    max_lr: float = knob(6e-4, "the highest learning rate")  # GPT-3's for this size (table 2.1)
    min_lr: float = knob(6e-5, "the last learning rate")  # a tenth of max_lr
    warmup_steps: int = knob(715, "steps until max_lr")  # 375M tokens / 2**19 tokens a step
    # a step shrinks weights by weight_decay * learning rate: 1000 would take more than half
    weight_decay: float = knob(0.1, "on matrices and embeddings only", most=1000)
    beta1: float = knob(0.9, "AdamW: how long the mean of the gradients remembers", below=1)
    # shorter than the usual 0.999, as in GPT-3
    beta2: float = knob(0.95, "AdamW: how long the mean of their squares remembers", below=1)
    grad_clip: float = knob(1.0, "largest gradient norm: one bad batch must not derail training",
                            least=1e-9)
    seed: int = knob(1337, "initial weights and dropout; the order of the data is always the same",
                     most=2**33)  # step_seed multiplies it by 1e9; a seed has 64 bits
    # the evals. 10,485,760 is 20 * 2**19: the same tokens, however many processes share them
    eval_every: int = knob(250, "steps between evals; 0: only at the end")
    val_tokens: int = knob(10485760, "tokens in one validation", least=1)
    hellaswag: bool = knob(True, "measure HellaSwag too (GPT-2's tokenizer only)")
    save_every: int = knob(1000, "steps between checkpoints, and one at the end; 0: none")
    keep_last: int = knob(2, "checkpoints to keep, 1.5 GB each for 124M; older ones are deleted",
                          least=1)


PRESETS = {
    # 124M, 355M, 774M and 1558M parameters. Rates: GPT-3 paper, table 2.1. B fits in 80 GB
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024, max_lr=3e-4, min_lr=3e-5, B=32),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280, max_lr=2.5e-4, min_lr=2.5e-5, B=16),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600, max_lr=2e-4, min_lr=2e-5, B=8),
    # characters of Shakespeare on two CPU cores, two epochs: many small steps, and matmuls too
    # small for bfloat16 to pay. The learning rate rises by 2e-5 a step. At 6e-5 a step, the update
    # of step 19 undid the first thing that the model learns, which of the vocabulary's 128 ids
    # occur in the text at all: the loss went from 3.7 to 5.5
    "laptop": dict(
        data_root="input.txt", tokenizer="char", block_size=64, n_layer=4, n_head=3, n_embd=96,
        dtype="float32", T=64, B=8, total_batch_size=512, max_steps=3921, max_lr=4e-3,
        min_lr=2e-4, warmup_steps=200, beta2=0.99, weight_decay=0.3, eval_every=250,
        hellaswag=False),
    # the video's first optimization: does a model of the real size run here, does its loss fall?
    "debug": dict(
        data_root="input.txt", n_layer=12, n_head=12, n_embd=768, T=32, B=4, total_batch_size=128,
        max_steps=50, max_lr=3e-4, min_lr=3e-4, warmup_steps=0, eval_every=0, val_tokens=4096,
        save_every=0, hellaswag=False),
}


# --------------------------------------------------------------------------------------------------
# 3 the data


def load_tokens(path):
    """A shard, a flat .npy array of uint16 or uint32 ids -> its tokens, read slice by slice"""
    return open_shard(path)


def load_data(config):
    """data_root -> the tokenizer, and the train and val splits as lists of token arrays"""
    root = config.data_root
    if os.path.isfile(root):
        return tokenize_file(root, config.tokenizer)
    train = [load_tokens(path) for path in list_shards(root, "train")]
    val = [load_tokens(path) for path in list_shards(root, "val")]
    return load_meta(root), train, val  # the tokenizer that the shards were made with


class DataLoaderLite:
    """
    The shards of a split as one long circular stream of tokens, and a position in it which all
    processes share. Together they take the next B*T*num_processes tokens, process r the r-th part
    of them. So the order of the data does not depend on B, on the number of processes or on the
    size of a shard; nothing is dropped; and one number says where we are.
    """

    def __init__(self, shards, B, T, process_rank=0, num_processes=1, n_vocab=None,
                 device_type="cpu"):
        self.shards = shards
        self.B, self.T = B, T
        self.process_rank, self.num_processes = process_rank, num_processes
        self.n_vocab = n_vocab
        self.device_type = device_type
        self.ends = np.cumsum([len(shard) for shard in shards])  # of each shard, in the stream
        self.num_tokens = int(self.ends[-1])
        if self.num_tokens <= B * T * num_processes:
            raise UserError(f"a split of {self.num_tokens} tokens is too short for a batch of "
                            f"{B * T * num_processes}: try a smaller --B or --T")
        self.position = 0  # tokens consumed by all processes together since the run began

    def locate(self, position):
        """A position in the stream -> the shard that holds it, and where in it."""
        position %= self.num_tokens
        i = int(np.searchsorted(self.ends, position, side="right"))
        start = int(self.ends[i]) - len(self.shards[i])
        return self.shards[i], position - start

    def read(self, start, n):
        """n tokens from `start` on, across the ends of shards and of the stream -> (n,) int64"""
        tokens = np.empty(n, dtype=np.int64)
        done = 0
        while done < n:
            shard, offset = self.locate(start + done)
            part = shard[offset : offset + n - done]
            tokens[done : done + len(part)] = part
            done += len(part)
        return torch.from_numpy(tokens)

    def read_checked(self, start, n):
        """read, and check the ids: on a GPU, one beyond the vocabulary fails inside a kernel"""
        tokens = self.read(start, n)
        ids = tokens.numpy()
        if self.n_vocab is not None and ids.max() >= self.n_vocab:
            shard, offset = self.locate(start + int(ids.argmax()))
            # who="me": this process says it itself. By default the first one speaks for all
            raise UserError(f"{shard.filename} has token {ids.max()} at offset {offset}: there are "
                            f"only {self.n_vocab}; the file is damaged, or was made with another "
                            "tokenizer", who="me")
        return tokens

    def next_batch(self):
        """-> x (B, T), y (B, T), int64: y is x shifted by one, the tokens to predict"""
        # read when it is needed: the system has the file in memory, as a rule, and a thread that
        # reads in advance would gain nothing
        B, T = self.B, self.T
        # one token more than B*T: the last row needs a target too. The next part begins with it
        buf = self.read_checked(self.position + B * T * self.process_rank, B * T + 1)
        self.position += B * T * self.num_processes
        x, y = buf[:-1].view(B, T), buf[1:].view(B, T)
        if self.device_type == "cuda":
            # pinned memory: the GPU can fetch it by itself while we go on (the copy is in main)
            x, y = x.pin_memory(), y.pin_memory()
        return x, y


# --------------------------------------------------------------------------------------------------
# 4 many GPUs: torchrun starts this file once for each of them, and every process runs all of it


@dataclass
class Process:
    """What a process knows of itself."""
    rank: int  # which of all processes this one is
    num_processes: int
    card: Card  # what computes: its kind, its name, what it can do
    device: torch.device  # where tensors go, perhaps cuda:3: so we test device.type, not device
    dtype: torch.dtype  # of the matmuls
    reason: str  # for this dtype
    autocast: torch.autocast  # around a forward: matmuls in dtype, norms and weights in float32
    config: TrainConfig
    log: RunLog = field(default_factory=RunLog)  # only the first process writes one
    signals: list = field(default_factory=list)  # that have asked us to stop

    def stop_requested(self):
        """Was any process asked to stop? All processes ask this together, and get one answer."""
        return all_reduce(len(self.signals))[0] > 0


def setup_distributed(config):
    """Find this process's card, and the other processes that torchrun has started -> Process"""
    rank, local_rank, num_processes = read_ranks()
    card = find_card(config.device, local_rank, num_processes)
    check_kernels(card)  # was this PyTorch built for it?
    if is_distributed() or config.shard != "no":
        if card.kind == "mps":
            raise UserError("a Mac has one GPU: run python train_gpt2.py, without torchrun and "
                            "--shard")
        # NCCL for GPU tensors, gloo for CPU tensors (all_reduce has both). With gloo alone,
        # everything distributed runs on a laptop, too
        backend = "cpu:gloo,cuda:nccl" if card.kind == "cuda" else "gloo"
        meet(backend, config.dist_timeout_s)
    dtype, reason = choose_dtype(config, card)
    autocast = torch.autocast(card.device.type, dtype=dtype, enabled=dtype != torch.float32)
    return Process(rank, num_processes, card, card.device, dtype, reason, autocast, config)


def all_reduce(*values, op=dist.ReduceOp.SUM):
    """The sum of each value over all processes, or with op MIN the smallest -> list of floats"""
    # sums and counts are exact, however unevenly the work is shared; means of means are not
    if not dist.is_initialized():
        return [float(v) for v in values]
    # a value on the GPU is summed there, which waits for all that is queued; numbers of the CPU
    # are summed beside it, while the GPU goes on
    device = "cpu"
    for v in values:
        if isinstance(v, torch.Tensor):
            device = v.device
    results = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
    dist.all_reduce(results, op)
    return results.tolist()


def choose_dtype(config, card):
    """What the hardware multiplies natively -> torch.dtype, the reason (str)"""
    if config.dtype != "auto":
        return getattr(torch, config.dtype), "as asked for"
    if card.kind == "cuda":
        major, minor = card.capability
        native = f"native at compute capability {major}.{minor}"
        if major >= 8:
            return torch.bfloat16, native
        if major == 7:
            return torch.float16, native
        return torch.float32, f"no 16-bit type is {native}"
    if card.native_bfloat16:
        return torch.bfloat16, "this CPU multiplies it natively"
    return torch.float32, "no 16-bit type is native here"


def wrap_model(raw_model, config, process):
    """
    raw_model -> model, a second handle on the same weights, for the step only: compiled, if that
    works, and in DDP, which averages the gradients of all processes while backward is still
    computing. Sharded, both handles are the same.
    """
    # saves memory, costs about a third more time (Chen et al. 2016)
    raw_model.activation_checkpointing = config.activation_checkpointing
    if config.shard != "no":
        shard_model(raw_model, config.shard, config.offload, process.device.type)
        return raw_model
    raw_model.to(process.device)
    compile = config.compile
    if compile is None:  # compiled code for GPUs is Triton's, which begins at capability 7.0
        compile = process.card.kind == "cuda" and process.card.capability >= (7, 0)
    if compile:
        model = wrap_in_ddp(torch.compile(raw_model), process)
        # it is compiled when it is first used: use it now, where a failure can still be answered
        error = try_compiled(model, config.B, config.T, process.device, process.autocast)
        failures = all_reduce(error is not None)[0]
        if failures == 0:
            return model
        print0(f"warning: going on without torch.compile: {error or 'it fails in another process'}")
        del model  # or its DDP would go on listening to the weights
    return wrap_in_ddp(raw_model, process)


def wrap_in_ddp(model, process):
    """One of several processes: DDP. A single one has nobody to average with."""
    if not dist.is_initialized():
        return model
    device_ids = [process.device.index] if process.device.type == "cuda" else None
    return DDP(model, device_ids=device_ids, gradient_as_bucket_view=True)


# --------------------------------------------------------------------------------------------------
# 5 the evals: on raw_model, since the compiled one would be compiled anew for each of their shapes.
# Each prints what it finds, and the first two log it. After a signal they return None at once. A
# resumed run validates again; HellaSwag, which comes after saving, is missing at that step


@torch.no_grad()
def evaluate_val_loss(step, raw_model, loader, process):
    """The mean loss over the first val_tokens of the split, in nats a token -> float"""
    config = process.config
    B, T = config.B, config.T
    num_rows = min(config.val_tokens, loader.num_tokens - 1) // T
    # row i is for process i mod num_processes: the same rows, however many processes there are
    rows = range(process.rank, num_rows, process.num_processes)
    # the same number of batches in each process, since a sharded model computes with the others: a
    # process that has run out of rows gets an empty last batch
    most_rows = math.ceil(num_rows / process.num_processes)
    batches = [rows[i : i + B] for i in range(0, most_rows, B)]
    if_slow = "a smaller --val_tokens or a larger --eval_every"
    loss_sum = 0.0
    raw_model.eval()
    for batch in progress(batches, "validation", if_slow):
        if process.stop_requested():
            raw_model.train()
            return None
        numbers = batch if len(batch) > 0 else [0]  # an empty batch computes, but counts nothing
        buf = torch.stack([loader.read_checked(row * T, T + 1) for row in numbers])
        buf = buf.to(process.device)  # (B, T+1)
        with process.autocast:
            _, loss = raw_model(buf[:, :-1], buf[:, 1:])
        loss_sum += loss * len(batch)  # stays on the device: .item() would wait for the GPU
    raw_model.train()
    val_loss = all_reduce(loss_sum)[0] / num_rows
    print0(f"step {step:5d} | validation loss: {val_loss:.4f} | {process.log.time_left(step)}"
           + compare_to_reference(step, val_loss, raw_model.config, config))
    process.log.write(step, val=f"{val_loss:.4f}")
    return val_loss


def evaluate_hellaswag(step, raw_model, items, process):
    """acc_norm: the share of items whose right ending has the lowest mean loss a token -> float"""
    if not items:
        return None
    t0 = time.time()
    counts = hellaswag.evaluate(raw_model, items, process)
    if counts is None:  # we are asked to stop: after one more step the run saves and ends
        return None
    _, correct = counts  # right by an ending's summed loss (acc), by its mean (acc_norm)
    acc_norm = all_reduce(correct)[0] / len(items)
    print0(f"step {step:5d} | HellaSwag acc_norm: {acc_norm:.4f} | took {time.time() - t0:.1f}s")
    process.log.write(step, hella=f"{acc_norm:.4f}")
    return acc_norm


def sample_prompt(tokenizer, loader):
    """What samples begin with, and how long they are -> ids, number of tokens"""
    if tokenizer.spec["name"] == "gpt2":
        return tokenizer.encode("Hello, I'm a language model,"), 24
    # a vocabulary whose words we do not know: begin as a line of the validation text does, but not
    # its first line, which may begin inside a word
    text = tokenizer.decode(loader.read(0, 500).tolist())
    lines = [line for line in text.split("\n")[1:] if line]
    if lines:
        return tokenizer.encode(lines[0][:8]), 200
    return loader.read(0, 8).tolist(), 200


def print_samples(step, raw_model, tokenizer, loader, process):
    """Four texts from each process. They tell more than a number does, and prove nothing."""
    learned_nothing = step == 0 and process.config.max_steps > 0
    if learned_nothing or process.stop_requested():
        return
    prompt, length = sample_prompt(tokenizer, loader)
    # a generator of its own: sampling must not disturb training's random numbers
    generator = torch.Generator(process.device).manual_seed(42 + process.rank)
    idx = torch.tensor([prompt] * 4, device=process.device)  # (4, T)
    raw_model.eval()
    with process.autocast:
        rows = raw_model.generate(idx, length, tokenizer.n_vocab, generator=generator)
    raw_model.train()
    for i, row in enumerate(rows.tolist()):
        print_here(f"rank {process.rank} sample {i}: {tokenizer.decode(row)}")


# --------------------------------------------------------------------------------------------------
# 6 checkpoints: plain data, by parameter name. Support finds, verifies and restores them


def save_checkpoint(path, keep_last, dt, raw_model, optimizer, **state):
    """
    Write the weights, the optimizer's moments and `state`: the scaler's state, step, position,
    val_loss and the settings. Every process calls this, the first one writes, and deletes all but
    the keep_last newest checkpoints. dt: how many seconds a step takes. -> False if that failed
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    t0 = time.time()
    # sharded weights are gathered one by one, by all processes, into the first process's CPU
    # memory; unsharded ones are not copied
    sharded = hasattr(raw_model, "unshard")  # a method that fully_shard has added
    options = StateDictOptions(full_state_dict=sharded, cpu_offload=sharded)
    state["model"], state["optimizer"] = get_state_dict(raw_model, optimizer, options=options)
    if not is_first_process():
        return True
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # or has somebody deleted the log?
        with atomic_write(path) as f:  # tensor by tensor: no second copy of all
            torch.save(state, f)
        checkpoints.remove_old(path, keep_last)
    except (OSError, RuntimeError) as e:  # torch.save makes a RuntimeError of some OSErrors
        print0(f"warning: {path} could not be saved ({one_line(e)}): training goes on")
        return False
    took = time.time() - t0
    print0(f"saved {path} in {took:.1f}s (a stop on SIGTERM takes a step and a save: "
           f"{took + dt:.1f}s)")
    return True


def load_checkpoint(path):
    """A checkpoint of ours or of the original build-nanogpt -> dict. Or a UserError."""
    return checkpoints.read(path)


def load_model(name):
    """
    A checkpoint, the directory of a run (then its newest one), a Hugging Face directory or gpt2 ...
    gpt2-xl -> dict of model (weights), config, tokenizer (its spec) and path; from a checkpoint
    also step, position, optimizer, ...
    """
    of_run = checkpoints.list_all(name)
    if of_run:
        return load_checkpoint(of_run[-1])
    if not os.path.isdir(name) and not re.fullmatch("gpt2(-medium|-large|-xl)?", name):
        return load_checkpoint(name)
    model = GPT.from_pretrained(name)
    return {"model": model.state_dict(), "config": asdict(model.config),
            "tokenizer": saved_spec(name), "path": name}


# --------------------------------------------------------------------------------------------------
# 7 training


def get_lr(step, config):
    """The learning rate of a step: linear warm-up, half a cosine to min_lr (GPT-3, appendix B)"""
    if step < config.warmup_steps:
        return config.max_lr * (step + 1) / config.warmup_steps  # + 1: rate 0 would teach nothing
    if step >= config.max_steps:
        return config.min_lr
    ratio = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)  # 0 -> 1
    coefficient = 0.5 * (1.0 + math.cos(math.pi * ratio))  # 1 -> 0
    return config.min_lr + coefficient * (config.max_lr - config.min_lr)


def step_seed(seed, step, rank):
    """A number for each step of each process, so that a resumed run draws the same dropout masks"""
    return (seed * 1_000_003 + step) * 1_009 + rank


def is_due(step, every):
    """Is it time for what is done every so many steps? 0: never."""
    return every > 0 and step % every == 0


@dataclass
class Plan:
    """What a run is, known before its processes meet."""
    gpt_config: GPTConfig
    config: TrainConfig
    given_flags: dict  # what was given on the command line: it wins over everything else
    checkpoint: dict | None  # the run to go on with
    start: dict | None  # the weights to start from: the checkpoint's, or those of --init_from
    tokenizer: object
    train_shards: list
    val_shards: list
    with_hellaswag: bool


def prepare(gpt_config, config, given_flags):
    """
    Which run is this? Its settings, weights and data -> Plan. What may take long comes here, before
    processes meet: those that wait for each other have a time limit.
    """
    if config.resume not in ("", "auto") and "log_dir" not in given_flags:
        # a run goes on where its checkpoint is; what a file says of places is never followed
        config = replace(config, log_dir=os.path.dirname(config.resume) or ".")
    checkpoint = checkpoints.find(config)  # that of --resume; None: a new run
    start = checkpoint
    if start is None and config.init_from:
        start = load_model(config.init_from)
    if start is not None:
        # given flags, and the values of a given preset, win over the checkpoint, which wins over
        # defaults. (From here on both count as given)
        gpt_config, config, given_flags = merge_settings(
            start, gpt_config, config, given_flags, PRESETS)
    if checkpoint is not None:
        checkpoints.check_steps(checkpoint, config.max_steps)
    tokenizer, train_shards, val_shards = load_data(config)
    if start is None and "vocab_size" not in given_flags:
        gpt_config.vocab_size = 128 * math.ceil(tokenizer.n_vocab / 128)  # 50257 -> 50304
    check_settings(gpt_config, config)
    check_length(config, given_flags, sum(map(len, train_shards)), sum(map(len, val_shards)))
    other_tokenizer = start is not None and start["tokenizer"] != tokenizer.spec
    if other_tokenizer or gpt_config.vocab_size < tokenizer.n_vocab:
        raise UserError(f"the model's vocabulary is not that of {config.data_root}: is it the "
                        "right --data_root and --tokenizer?")
    # downloaded by one process of each machine; 12 MB, for which the others can wait
    with_hellaswag = config.hellaswag and hellaswag.prepare_for(tokenizer)
    return Plan(gpt_config, config, given_flags, checkpoint, start, tokenizer, train_shards,
                val_shards, with_hellaswag)


def load_items(plan):
    """HellaSwag's items, tokenized -> list, empty if nobody measures it"""
    items = []
    if plan.with_hellaswag:
        items = [hellaswag.tokenize_example(example) for example in hellaswag.load_examples()]
    # if one machine has none, no process measures: the others would wait for it
    processes_without = all_reduce(len(items) == 0)[0]
    return items if processes_without == 0 else []


def start_log(plan, log_dir, process, **settings):
    """
    Open log.txt and settings.json -> all settings, which go into every checkpoint too (dict).
    settings: what this run adds, train_config among it
    """
    settings = {"run": run_number(plan.checkpoint, log_dir), "config": asdict(plan.gpt_config),
                "tokenizer": plan.tokenizer.spec, **settings,
                "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}
    # each process has read the checkpoint by itself, perhaps on another machine
    step = plan.checkpoint["step"] if plan.checkpoint else 0
    if all_reduce(step)[0] != step * process.num_processes:
        raise UserError(f"process {process.rank} would go on from step {step}, another one from a "
                        f"different step: {log_dir} must be one that all machines see", who="me")
    # the first process writes; --max_steps=0, an evaluation only, writes nothing
    if process.rank == 0 and settings["train_config"]["max_steps"] > 0:
        process.log = open_log(log_dir, settings, plan.checkpoint)
    return settings


def print_choices(process, grad_accum_steps, num_tokens, tokenizer):
    """The first lines of a run: what was chosen, and why. num_tokens: of the training data"""
    config = process.config
    unit = "character" if tokenizer.spec["name"] == "char" else "token"
    epochs = config.max_steps * config.total_batch_size / num_tokens
    print0(f"{process.card.kind}, {str(process.dtype)[6:]} ({process.reason}); "
           f"{config.total_batch_size} tokens a step = B {config.B} * T {config.T} * "
           f"{process.num_processes} process(es) * {grad_accum_steps} micro step(s)")
    print0(f"{num_tokens:,} {unit}s to train on: {config.max_steps} steps are {epochs:.2f} epochs; "
           f"losses are in nats a {unit}")


def report_step(step, loss, lr, norm, dt, raw_model, process):
    """The line of a step, on the console and in the log. dt: its seconds."""
    config = process.config
    tokens_per_second = config.total_batch_size / max(dt, 1e-9)  # a coarse clock can stand still
    utilization = ""  # MFU, the share of the card's peak that we reach. Only 16-bit peaks are known
    if process.dtype != torch.float32:
        per_card = tokens_per_second / process.num_processes
        utilization = mfu(process.card.name, raw_model.config, config.T, per_card)
    print0(f"step {step:5d} | loss: {loss:.6f} | lr {lr:.4e} | norm: {norm:.4f} | "
           f"dt: {dt * 1000:.2f}ms | tok/sec: {tokens_per_second:.2f}{utilization}")
    process.log.write(step, train=f"{loss:.6f}", lr=f"{lr:.4e}", norm=f"{norm:.4f}",
                      dt=f"{dt * 1000:.2f}")


def report_stop(step, process):
    """The last line of a run that was asked to stop: by whom, and how it goes on."""
    reason = process.signals[0].name if process.signals else "another process"
    advice = "this run has written no checkpoint"
    if checkpoints.list_all(process.config.log_dir):
        advice = "go on with --resume=auto"
    print0(f"stopped by {reason}: {step} steps are done; {advice}")


def main(plan):
    # --- this process, its batch, its part of the data --------------------------------------------
    process = setup_distributed(plan.config)
    # B must divide each process's rows of a step, and fit into the fullest card
    free = all_reduce(process.card.free, op=dist.ReduceOp.MIN)[0]
    B, grad_accum_steps = choose_batch(plan, process, free)
    config = replace(plan.config, B=B)
    plan.config = process.config = config
    common = (process.rank, process.num_processes, plan.tokenizer.n_vocab, process.device.type)
    train_loader = DataLoaderLite(plan.train_shards, B, config.T, *common)
    val_loader = DataLoaderLite(plan.val_shards, 1, config.T, *common)  # read row by row
    stream = checkpoints.identify_stream(train_loader)
    items = load_items(plan)
    print_choices(process, grad_accum_steps, train_loader.num_tokens, plan.tokenizer)

    # --- the model, and what changes it -----------------------------------------------------------
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs: 8 bits of range, 10 of precision
    torch.manual_seed(config.seed)  # the same weights in every process
    raw_model = GPT(plan.gpt_config)
    if plan.start is not None:
        checkpoints.load_weights(raw_model, plan.start["model"], plan.start["path"])
    model = wrap_model(raw_model, config, process)
    betas = (config.beta1, config.beta2)
    optimizer = raw_model.configure_optimizers(config.weight_decay, config.max_lr, betas)
    # float16 has few bits of exponent: unscaled, small gradients would vanish
    scaler = torch.amp.GradScaler(process.device.type, enabled=process.dtype == torch.float16)
    start_step, val_loss = 0, None
    if plan.checkpoint is not None:
        checkpoints.check_stream(plan.checkpoint, train_loader, stream, config.data_root)
        checkpoints.restore(plan.checkpoint, raw_model, optimizer, scaler)
        train_loader.position = plan.checkpoint["position"]
        start_step, val_loss = plan.checkpoint["step"], plan.checkpoint.get("val_loss")
    settings = start_log(plan, config.log_dir, process, train_config=asdict(config), stream=stream)

    # --- the loop: `step` counts the updates done; evals and saving come before the next one ------
    process.signals = catch_signals()
    dt, recent_norms, stop, saved = 0.0, [], False, True
    for step in range(start_step, config.max_steps + 1):
        last_step = step == config.max_steps
        eval_now = not stop and (last_step or is_due(step, config.eval_every))
        if eval_now:
            val_loss = evaluate_val_loss(step, raw_model, val_loader, process)
            stop = process.stop_requested()
        save_now = last_step or stop or is_due(step, config.save_every)
        if save_now and config.save_every > 0 and step > start_step:
            path = os.path.join(config.log_dir, f"model_{step:05d}.pt")
            saved = save_checkpoint(
                path, config.keep_last, dt, raw_model, optimizer, scaler=scaler.state_dict(),
                step=step, position=train_loader.position, val_loss=val_loss, **settings)
        if eval_now and not stop:  # after saving: what only shows something may fail
            evaluate_hellaswag(step, raw_model, items, process)
            print_samples(step, raw_model, plan.tokenizer, val_loader, process)
        if last_step or stop:
            break

        # ============================== THE STEP ==============================
        t0 = time.perf_counter()
        torch.manual_seed(step_seed(config.seed, step, process.rank))
        optimizer.zero_grad(set_to_none=True)
        loss_accum = 0.0
        for micro_step in range(grad_accum_steps):
            x, y = train_loader.next_batch()
            x = x.to(process.device, non_blocking=True)
            y = y.to(process.device, non_blocking=True)
            if isinstance(model, DDP):
                # DDP averages the gradients over all processes, but once a step is enough: in the
                # last micro step. Set this before the forward, where DDP decides whether to
                # average. Set later, it raises no error, it just makes a much worse model
                model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
            with process.autocast:
                _, loss = model(x, y)
            # backward adds to the gradients: divided here, the sum over the micro steps is the
            # mean over the batch
            loss = loss / grad_accum_steps
            loss_accum += loss.detach()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(raw_model.parameters(), config.grad_clip)
        lr = get_lr(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        scaler.step(optimizer)
        scaler.update()
        process.card.synchronize()  # the GPU works on what we queued: only now is the step done
        dt = time.perf_counter() - t0
        # ======================================================================

        if config.shard != "no":
            norm = norm.full_tensor()  # each process has a part of it
        norm = norm.item()
        loss, signals = all_reduce(loss_accum / process.num_processes, len(process.signals))
        stop = signals > 0  # then the next turn saves and ends
        report_step(step, loss, lr, norm, dt, raw_model, process)
        # nan ends the run and says where in the data; a norm far above the recent ones is reported
        check_numbers(step, loss, norm, recent_norms, scaler, train_loader, config)
    if stop:
        report_stop(step, process)
    if not saved or process.log.waiting:
        raise UserError("the last checkpoint could not be saved, or the log", exit_code=1)


def run(argv):
    gpt_config, config, given_flags = parse_flags(argv, __doc__, PRESETS, GPTConfig, TrainConfig)
    if config.estimate:
        print(memory_text(gpt_config, config))
        return
    check_cache()  # PyTorch ends where its compiler's cache cannot be written
    keep_freed_memory()  # on a CPU gradients are freed and made again at every step
    read_ranks()  # only for its errors: if some of torchrun's variables are missing, fail at once
    plan = prepare(gpt_config, config, given_flags)
    try:
        main(plan)
    except RuntimeError as e:
        raise explain(e, plan.config.B)  # out of memory, another process is gone
    finally:
        catch_signals(False)
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    run_program(run)
