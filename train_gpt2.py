"""
Reproduce GPT-2 (124M) from nothing: the model, the data, the evals and the training loop, to be read top to bottom.

    python train_gpt2.py --preset=laptop              # characters of Shakespeare, two minutes on a laptop
    python train_gpt2.py --preset=debug               # 124M parameters, 50 steps: does everything run here?
    python train_gpt2.py                              # the real run, after python fineweb.py
    torchrun --standalone --nproc_per_node=8 train_gpt2.py             # the same on eight GPUs
    python train_gpt2.py --resume=auto                # go on from the newest checkpoint in log/
    python train_gpt2.py --init_from=gpt2 --max_steps=0                # evaluate OpenAI's GPT-2

Contents
    1 the model         GPTConfig, CausalSelfAttention, MLP, Block, GPT
    2 the settings      TrainConfig, every knob with its reason; PRESETS
    3 the data          load_tokens, load_data, DataLoaderLite
    4 many GPUs         setup_distributed, all_reduce, choose_dtype, wrap_model
    5 the evals         evaluate_val_loss, evaluate_hellaswag, print_samples
    6 checkpoints       save_checkpoint, load_checkpoint, load_model
    7 training          get_lr, main: the set-up, then the loop with THE STEP

Letters in the comments on shapes
    B rows of a batch    T tokens of a row (time)    C channels, n_embd    nh heads, hs = C / nh    V vocabulary rows
"""
import math
import os
import re
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint as recompute

import hellaswag
from support import checkpoints
from support import hugging_face
from support.arithmetic import memory_text, mfu
from support.checkpoints import load_weights
from support.compiling import first_backward
from support.console import UserError, is_first_process, one_line, print0, progress, run_program
from support.files import atomic_write
from support.processes import (Card, catch_signals, check_kernels, explain, find_card, is_distributed,
                               keep_freed_memory, meet, read_ranks)
from support.runlog import RunLog, open_log
from support.settings import check_settings, choose_batch, knob, merge_settings, parse_flags
from support.sharding import shard_model
from support.shards import list_shards, load_meta, open_shard
from support.tokenizer import saved_spec, tokenize_file
from support.health import check_numbers, compare_to_reference, time_left

# ----------------------------------------------------------------------------------------------------
# 1 the model

@dataclass
class GPTConfig:
    block_size: int = knob(1024, "the longest context in tokens: the rows of wpe", least=1)
    # GPT-2's 50,257 tokens, padded to a multiple of 128, which matmuls like
    vocab_size: int = knob(50304, "rows of wte: the tokens, and what pads them", least=1)
    n_layer: int = knob(12, "blocks", least=1)
    n_head: int = knob(12, "attention heads in a block", least=1)
    n_embd: int = knob(768, "C, the width of the residual stream", least=1)
    # GPT-2 used 0.1; in less than one epoch there is nothing to overfit to
    dropout: float = knob(0.0, "the share of activations that is set to zero in training", below=1)

class CausalSelfAttention(nn.Module):
    """The only place where a token learns of other tokens (Vaswani et al. 2017, section 3.2). (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # queries, keys and values of all heads, one matmul
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True  # see GPT._init_weights
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, mask=None, cache=None):
        B, T, C = x.size()
        # every token asks (query), says what it is about (key) and what it has to tell (value)
        qkv = self.c_attn(x).split(C, dim=2)  # three times (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in qkv)  # (B, nh, T, hs)
        if cache is not None:
            # the past does not see the future, so its keys and values never change: computed once, they are kept
            if self not in cache.kv:
                cache.kv[self] = k.new_empty(2, B, self.n_head, cache.size, C // self.n_head)
            kv = cache.kv[self][:, :, :, : cache.n + T]  # (2, B, nh, n + T, hs)
            kv[:, :, :, cache.n :] = torch.stack((k, v))
            k, v = kv
        # softmax(q k^T / sqrt(hs)) v, each token looking at itself and the past (is_causal), or where mask says. Flash
        # attention (Dao et al. 2022) gets there without ever writing the (T, T) matrix to memory
        dropout_p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, mask is None and k.size(2) == T)  # (B, nh, T, hs)
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # the heads side by side again: (B, T, C)
        return self.resid_dropout(self.c_proj(y))

class MLP(nn.Module):
    """Each token by itself thinks over what it has heard. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")  # exact GELU was slow in 2018's TensorFlow; the weights expect the tanh
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = self.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)

class Block(nn.Module):
    """Communicate, then compute. Norms come before each part, so that the residual stream itself runs through clean."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, cache=None):
        x = x + self.attn(self.ln_1(x), mask, cache)
        x = x + self.mlp(self.ln_2(x))
        return x

class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019), with the parameter names of Hugging Face's GPT2LMHeadModel."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),  # what a token means
            wpe=nn.Embedding(config.block_size, config.n_embd),  # where it stands
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # what means the same should be equally likely to come next: one matrix for both ends (Press and Wolf 2017).
        # It is 38.6M of the 124M parameters
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """Normal with std 0.02, about 1 / sqrt(C) for GPT-2's widths; biases zero. (GPT-2's code had 0.01 for wpe.)"""
        if isinstance(module, nn.Linear):
            std = 0.02
            if hasattr(module, "adds_to_residual"):
                # 2 n_layer such sums: their variances add up, this keeps the stream's at about one (GPT-2, section 2.3)
                std *= (2 * self.config.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None, wanted=None, pos=None, mask=None, cache=None):
        """
        idx (B, T) token ids, T <= block_size; targets (B, T), the token that comes next at each position, or None.
        -> logits (B, T, V), and the mean cross-entropy in nats per token (None without targets).
        wanted (n,): the only ones of the B*T positions to make logits (n, V) for; with targets: (), the loss alone.
        For HellaSwag: pos (B, T), where a token stands in its text; mask (B, 1, T, T), true where row may see column.
        For stream: cache, the keys and values of the cache.n tokens before idx, to which those of idx are added.
        """
        T, past = idx.size(1), cache.n if cache else 0
        pos = torch.arange(past, past + T, device=idx.device) if pos is None else pos
        if past > 0 and T > 1:  # each token may look at all in the cache, and at idx up to itself
            mask = torch.ones(T, past + T, dtype=torch.bool, device=idx.device).tril(past)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))  # (B, T, C) + (T, C)
        for block in self.transformer.h:
            x = block(x, mask, cache)
        if cache:
            cache.n += T
        if targets is None:
            x = self.transformer.ln_f(x if wanted is None else x.flatten(0, 1)[wanted])  # (B, T, C), or (n, C)
            # for the few rows of stream the other order takes half the time (float32, n = 4, AMD EPYC, 2026-11-22)
            return self.lm_head(x) if cache is None else (self.lm_head.weight @ x.mT).mT, None  # (B, T, V), or (n, V)
        x = self.transformer.ln_f(x)
        # all logits at once are the largest tensor of a step: where nobody wants them, pieces of n tokens. Not too
        # many: each has a gradient of the head's size, and compiled code keeps them all to its end, to add them up
        n, loss = idx.numel() if wanted is None else max(1024, idx.numel() // 8), 0.0
        for a, b in zip(x.flatten(0, 1).split(n), targets.flatten().split(n), strict=True):
            logits = self.lm_head(a)  # (n, V)
            # in float32 also where logits are not: bfloat16 has three digits, a late step gains in the sixth
            loss = loss + F.cross_entropy(logits.float(), b, reduction="sum") / idx.numel()
        return logits.unflatten(0, idx.shape) if wanted is None else None, loss

    @torch.no_grad()
    def stream(self, idx, n_vocab=None, temperature=1.0, top_k=50, top_p=1.0, generator=None):
        """
        Continue idx (B, T): yield the next token of each row (B, 1), for ever. It is drawn from the top_k likeliest, of
        these from the first whose probabilities add up to top_p (Holtzman et al. 2020). temperature 0: the likeliest.
        n_vocab: the tokenizer's size, padding ids beyond it never come. The model sees at most block_size tokens; when
        so many are in the cache the older half is dropped, and the rest computed anew.
        """
        keep, size, cache = self.config.block_size, self.config.block_size, None
        while True:
            if cache is None or cache.n == size:  # the cache is an object: of lists and dicts FSDP makes copies
                new, cache = idx[:, -keep:], SimpleNamespace(n=0, size=size, kv={})
                keep = size - size // 2
            last = torch.arange(1, len(idx) + 1, device=idx.device) * new.size(1) - 1  # each row's, among all B*T
            logits = self(new, wanted=last, cache=cache)[0][:, :n_vocab].float()  # (B, V): what may follow
            # keep the top_k likeliest: the long tail is noise, and one bad token derails all that follow
            values, ids = logits.topk(1 if temperature < 1e-6 else min(top_k, logits.size(1)))  # (B, top_k)
            probs = F.softmax(values / max(temperature, 1e-6), dim=-1)
            probs[probs.cumsum(dim=-1) - probs >= top_p] = 0.0
            new = ids.gather(1, torch.multinomial(probs, 1, generator=generator))  # (B, 1)
            idx = torch.cat((idx, new), dim=1)
            yield new

    def generate(self, idx, max_new_tokens, n_vocab=None, eot=None, **sampling):
        """idx (B, T) and what stream makes of it -> (B, T + max_new_tokens). After eot comes nothing but eot."""
        new = torch.cat((idx[:, :0], *islice(self.stream(idx, n_vocab, **sampling), max_new_tokens)), dim=1)
        if eot is not None:
            new[(new == eot).cumsum(dim=1) > 0] = eot
        return torch.cat((idx, new), dim=1)

    @classmethod
    def from_pretrained(cls, name):
        """OpenAI's weights (gpt2 ... gpt2-xl, from the Hugging Face hub), or a directory in their format -> GPT"""
        shape, theirs = hugging_face.read(name)
        weights = {}
        for key, w in theirs.items():
            if key.endswith((".attn.bias", ".attn.masked_bias")):
                continue  # the causal mask, a constant
            if not key.startswith(("transformer.", "lm_head.")):
                key = "transformer." + key  # some files leave it out
            weights[key] = w.t() if key.endswith(CONV1D) else w
        if "transformer.wte.weight" in weights:
            weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied, stored once
        model = cls(GPTConfig(**shape))
        load_weights(model, weights, name)
        return model

    def save_pretrained(self, folder, n_vocab=None, eot=50256):
        """The inverse, for transformers too, without the padding: n_vocab rows, as many as the tokenizer has tokens."""
        weights = {key: w.t() if key.endswith(CONV1D) else w for key, w in self.state_dict().items()}
        head = weights.pop("lm_head.weight")  # tied, stored once
        weights["transformer.wte.weight"] = head[:n_vocab]
        shape = {**asdict(self.config), "vocab_size": len(head[:n_vocab])}
        del shape["dropout"]
        hugging_face.write(folder, shape, eot, weights)

    def configure_optimizers(self, weight_decay, learning_rate, betas=(0.9, 0.95)):
        """AdamW (Loshchilov and Hutter 2019), with weight decay on matrices and embeddings only."""
        decay = [p for p in self.parameters() if p.dim() >= 2]
        no_decay = [p for p in self.parameters() if p.dim() < 2]  # biases and norms: there is nothing to regularise
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
        # fused: one kernel for all tensors instead of several for each
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)

# OpenAI's linear layers, called Conv1D, store (in, out), nn.Linear (out, in): these are transposed on the way
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

# ----------------------------------------------------------------------------------------------------
# 2 the settings

@dataclass
class TrainConfig:
    preset: str = knob("gpt2", "a named set of values (PRESETS); flags that are given win over it")
    # what goes in and out
    data_root: str = knob("edu_fineweb10B", "a directory of token shards, or one text file")
    tokenizer: str = knob("gpt2", "for a text file: gpt2 (BPE) or char (one token a character)",
                          choices=("gpt2", "char"))
    log_dir: str = knob("log", "log.txt, settings.json, model_*.pt")
    tensorboard: bool = knob(False, "write the streams of log.txt for TensorBoard, too")
    init_from: str = knob("", "start from gpt2, gpt2-medium, gpt2-large, gpt2-xl, a .pt file or a "
                              "directory in Hugging Face's format")
    resume: str = knob("", "auto (the newest checkpoint in log_dir, if any) or a checkpoint's path")
    # the machine
    device: str = knob("auto", "cuda, mps or cpu")
    dtype: str = knob("auto", "of the matmuls; the weights stay in float32",
                      choices=("auto", "bfloat16", "float16", "float32"))
    compile: bool | None = knob(None, "torch.compile, by default on CUDA only: it takes a minute")
    dist_timeout_s: int = knob(600, "seconds after which a process gives up on a silent one",
                               least=1, most=10**7)
    shard: str = knob("no", "a large model: all shares its state among all processes, node among "
                            "those of a machine", choices=("no", "all", "node"), alone="all")
    offload: bool = knob(False, "with shard: weights and AdamW's moments in the CPU's memory")
    activation_checkpointing: bool = knob(False, "forget a block's activations, compute them again "
                                                 "in backward")
    estimate: bool = knob(False, "print what memory these settings need on 1 to 8 GPUs, and end")
    # the batch
    total_batch_size: int = knob(524288, "tokens a step", least=1)  # 2**19, GPT-3's 0.5M (table 2.1)
    B: int = knob(64, "rows in a micro batch: what fits; it does not change the result", least=1)
    T: int = knob(1024, "tokens in a row", least=1)
    # the optimization
    max_steps: int = knob(19073, "steps of the run")  # 10e9 tokens / 2**19 a step: one epoch
    max_lr: float = knob(6e-4, "the highest learning rate")  # GPT-3's for this size (table 2.1)
    min_lr: float = knob(6e-5, "the last learning rate")  # a tenth of max_lr
    warmup_steps: int = knob(715, "steps until max_lr")  # 375M tokens / 2**19 tokens a step
    weight_decay: float = knob(0.1, "on matrices and embeddings only")
    beta1: float = knob(0.9, "AdamW: how long the mean of the gradients remembers", below=1)
    # shorter than the usual 0.999, as in GPT-3
    beta2: float = knob(0.95, "AdamW: how long the mean of their squares remembers", below=1)
    grad_clip: float = knob(1.0, "the longest gradient: one bad batch must not derail training",
                            least=1e-9)
    seed: int = knob(1337, "initial weights and dropout; the order of the data is always the same",
                     most=2**33)  # step_seed makes 63 bits of it
    # the evals
    eval_every: int = knob(250, "steps between evals; 0: only at the end")
    val_tokens: int = knob(10485760, "tokens of a validation", least=1)  # 20 * 2**19
    hellaswag: bool = knob(True, "measure HellaSwag too (GPT-2's tokenizer only)")
    save_every: int = knob(1000, "steps between checkpoints, and one at the end; 0: none")
    keep_last: int = knob(2, "older checkpoints are deleted: one is 1.5 GB for 124M", least=1)

PRESETS = {  # learning rates of the GPT-3 paper, table 2.1; B for 80 GB
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768),                                           # 124M
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024, max_lr=3e-4, min_lr=3e-5, B=32),   # 350M
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280, max_lr=2.5e-4, min_lr=2.5e-5, B=16),  # 774M
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600, max_lr=2e-4, min_lr=2e-5, B=8),        # 1558M
    # characters of Shakespeare on two CPU cores: many small steps, and matmuls too small for bfloat16 to pay
    "laptop": dict(data_root="input.txt", tokenizer="char", dtype="float32", hellaswag=False, eval_every=1000,
                   block_size=64, n_layer=4, n_head=3, n_embd=96, T=64, B=8, total_batch_size=512, max_steps=3921,
                   max_lr=6e-3, min_lr=1e-4, warmup_steps=100, beta2=0.99, weight_decay=0.3),  # two epochs
    # the lecture's first optimization: does a model of the real size run here, and does its loss fall?
    "debug": dict(data_root="input.txt", n_layer=12, n_head=12, n_embd=768, T=32, B=4, total_batch_size=128,
                  max_steps=50, max_lr=3e-4, min_lr=3e-4, warmup_steps=0, eval_every=0, val_tokens=4096, save_every=0,
                  hellaswag=False),
}

# ----------------------------------------------------------------------------------------------------
# 3 the data

def load_tokens(path):
    """A shard (a flat .npy array of uint16 or uint32 ids) -> its tokens: a slice is read when it is asked for."""
    return open_shard(path)

def load_data(config):
    """-> the tokenizer, the train and the val split of data_root (lists of token arrays)."""
    root = config.data_root
    if os.path.isfile(root):
        return tokenize_file(root, config.tokenizer)
    splits = [[load_tokens(path) for path in list_shards(root, split)] for split in ("train", "val")]
    return load_meta(root), *splits  # the tokenizer that the shards were made with

class DataLoaderLite:
    """
    The shards of a split as one long circular stream of tokens, and a position in it which all processes share. All
    together take the next B*T*num_processes tokens, process r the r-th part of them. So the order of the data depends
    on neither B, the number of processes nor the size of a shard; nothing is dropped; and one number says where we are.
    """

    def __init__(self, shards, B, T, process_rank=0, num_processes=1, n_vocab=None, device_type="cpu"):
        self.shards, self.B, self.T = shards, B, T
        self.process_rank, self.num_processes = process_rank, num_processes
        self.n_vocab, self.pin = n_vocab, device_type == "cuda"
        self.ends = np.cumsum([len(shard) for shard in shards])  # of each shard, in the stream
        self.num_tokens = int(self.ends[-1])
        if self.num_tokens <= B * T * num_processes:
            raise UserError(f"a split of {self.num_tokens} tokens is too short for a batch of {B * T * num_processes}: "
                            "try a smaller --B or --T")
        self.position = 0  # tokens consumed by all processes together, since the beginning of the run

    def locate(self, position):
        """A position in the stream -> the shard that holds it, and where in it."""
        position %= self.num_tokens
        i = int(np.searchsorted(self.ends, position, side="right"))
        return self.shards[i], position - int(self.ends[i]) + len(self.shards[i])

    def read(self, start, n):
        """n tokens from `start` on, across the ends of shards; after the last token comes the first -> (n,) int64"""
        tokens, done = np.empty(n, dtype=np.int64), 0
        while done < n:
            shard, offset = self.locate(start + done)
            part = shard[offset : offset + n - done]
            if self.n_vocab is not None and int(part.max()) >= self.n_vocab:
                raise UserError(f"{shard.filename} has token {part.max()} at offset {offset + int(part.argmax())}: "
                                f"there are only "
                                f"{self.n_vocab}; it is damaged, or was made with another tokenizer", who="me")
            tokens[done : done + len(part)] = part
            done += len(part)
        return torch.from_numpy(tokens)

    def next_batch(self):
        """-> x (B, T) and y (B, T), int64; y is x moved on by one: the token to be predicted at each position."""
        B, T = self.B, self.T
        # one token more than B*T: the last row needs a target too. The next batch begins with that token
        buf = self.read(self.position + B * T * self.process_rank, B * T + 1)
        self.position += B * T * self.num_processes
        x, y = buf[:-1].view(B, T), buf[1:].view(B, T)
        # pinned memory: the GPU can fetch it by itself while we go on (the copy is in main)
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y)

# ----------------------------------------------------------------------------------------------------
# 4 many GPUs: torchrun starts this file once for each of them, and every process runs all of it

@dataclass
class Process:
    """What a process knows of itself."""
    rank: int  # which of all processes this one is
    num_processes: int
    card: Card  # what computes: its kind, its name, what it can do
    device: torch.device  # where tensors go. We compare device.type: a device may be called cuda:3
    dtype: torch.dtype  # of the matmuls
    reason: str  # for this dtype
    autocast: torch.autocast  # around a forward: matmuls in dtype; norms and the weights themselves stay in float32
    signals: list  # what has asked us to stop so far

def setup_distributed(config):
    """What torchrun says, or one process, and what torch says about its card -> Process"""
    rank, local_rank, num_processes = read_ranks()
    card = find_card(config.device, local_rank, num_processes)
    if is_distributed() or config.shard != "no":
        if card.kind == "mps":
            raise UserError("a Mac has one GPU: run python train_gpt2.py, without torchrun and --shard")
        # NCCL between GPUs, gloo between CPUs: whatever is distributed can be tried on a laptop
        meet("cpu:gloo,cuda:nccl" if card.kind == "cuda" else "gloo", config.dist_timeout_s)
    dtype, reason = choose_dtype(config, card)
    autocast = torch.autocast(card.device.type, dtype=dtype, enabled=dtype != torch.float32)
    return Process(rank, num_processes, card, card.device, dtype, reason, autocast, signals=[])

def all_reduce(*values):
    """The sum of each value over all processes -> list of floats. Sums and counts, not means: shares may be uneven."""
    if not dist.is_initialized():
        return [float(v) for v in values]
    sums = torch.tensor([float(v) for v in values], dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()

def choose_dtype(config, card):
    """What the hardware multiplies natively -> torch.dtype, the reason (str)."""
    dtype, reason = torch.float32, "nothing shorter is native here"
    if card.kind == "cuda":
        check_kernels(card)
        major, minor = card.capability
        dtype = torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32
        reason = f"native at compute capability {major}.{minor}"
    elif card.native_bfloat16:
        dtype, reason = torch.bfloat16, "this CPU multiplies it natively"
    if config.dtype != "auto":
        return getattr(torch, config.dtype), "as asked for"
    return dtype, reason

def wrap_model(raw_model, config, process):
    """
    raw_model -> model, a second handle on the same weights, for the step only: compiled, if that works, and in DDP,
    which averages the gradients of all processes while backward is still computing. Sharded, both are the same.
    """
    if config.activation_checkpointing:  # memory for time, a third more of it (Chen et al. 2016)
        for block in raw_model.transformer.h:
            block.forward = partial(recompute, block.forward, use_reentrant=False)
    if config.shard != "no":
        shard_model(raw_model, config.shard, config.offload, process.device.type)
        return raw_model
    raw_model.to(process.device)
    compile = config.compile
    if compile is None:  # compiled code for GPUs is Triton's, which begins at compute capability 7.0
        compile = process.card.kind == "cuda" and process.card.capability >= (7, 0)
    if compile:
        model = wrap_in_ddp(torch.compile(raw_model), process)
        error = first_backward(model, config.B, config.T, process.device, process.autocast)
        if all_reduce(error is not None) == [0]:
            return model
        print0(f"warning: going on without torch.compile: {error or 'it fails in another process'}")
        del model  # or its DDP would go on listening to the weights
    return wrap_in_ddp(raw_model, process)

def wrap_in_ddp(model, process):
    """One of several processes: DDP. A single one has nobody to average with."""
    if not dist.is_initialized():
        return model
    ids = [process.device.index] if process.device.type == "cuda" else None
    return DDP(model, device_ids=ids, gradient_as_bucket_view=True)

# ----------------------------------------------------------------------------------------------------
# 5 the evals: each one call in the loop, on raw_model

def end_if_stopped(process):
    """Raise KeyboardInterrupt in all processes if one was asked to stop: an eval may take long, and can be repeated."""
    if any(all_reduce(len(process.signals))):
        raise KeyboardInterrupt

@torch.no_grad()
def evaluate_val_loss(raw_model, loader, config, process):
    """The mean loss, in nats per token, over the first val_tokens of the split, in rows of T, B at once -> float"""
    T = config.T
    num_rows = min(config.val_tokens, loader.num_tokens - 1) // T
    # row i is for process i mod num_processes: the same rows, whatever B and the number of processes
    rows = range(process.rank, num_rows, process.num_processes)
    # as many batches in each process, the last may be empty: so that no process waits for one that has finished
    most_rows = math.ceil(num_rows / process.num_processes)
    batches = [rows[i : i + config.B] for i in range(0, most_rows, config.B)]
    loss_sum = 0.0
    raw_model.eval()
    for batch in progress(batches, "validation", "a smaller --val_tokens or a larger --eval_every",
                          lambda: end_if_stopped(process)):
        buf = torch.stack([loader.read(row * T, T + 1) for row in batch or [0]]).to(process.device)  # (B, T+1)
        with process.autocast:
            _, loss = raw_model(buf[:, :-1], buf[:, 1:], ())
        loss_sum += loss * len(batch)  # stays on the device: .item() would wait for the GPU
    raw_model.train()
    return all_reduce(loss_sum)[0] / num_rows

def evaluate_hellaswag(raw_model, items, process):
    """acc_norm: the share of the items whose right ending the model finds the likeliest per token -> float"""
    _, correct = hellaswag.evaluate(raw_model, items, process.autocast, None, process.rank, process.num_processes,
                                    lambda: end_if_stopped(process))
    return all_reduce(correct)[0] / len(items)

def print_samples(raw_model, tokenizer, val_loader, process):
    """Each process shows four texts. No number tells as much about a model, and no text proves anything."""
    gpt2 = tokenizer.spec["name"] == "gpt2"
    prompt = tokenizer.encode("Hello, I'm a language model,") if gpt2 else val_loader.read(0, 8).tolist()
    # its own: sampling must not disturb training's random numbers
    generator = torch.Generator(process.device).manual_seed(42 + process.rank)
    raw_model.eval()
    with process.autocast:
        idx = torch.tensor([prompt] * 4, device=process.device)  # (4, T)
        rows = raw_model.generate(idx, 24 if gpt2 else 200, tokenizer.n_vocab, generator=generator)
    raw_model.train()
    for i, row in enumerate(rows.tolist()):
        print(f"rank {process.rank} sample {i}: {tokenizer.decode(row)}", flush=True)

# ----------------------------------------------------------------------------------------------------
# 6 checkpoints

def save_checkpoint(path, keep_last, dt, raw_model, optimizer, **state):
    """
    Write all that a resumed run needs, as plain data by parameter name, and keep the keep_last newest files -> success.
    Every process calls this, the first one writes. dt: seconds of a step.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    t0 = time.time()
    sharded = hasattr(raw_model, "unshard")
    # sharded weights are gathered one by one, by all processes, into the first one's CPU memory; others are not copied
    options = StateDictOptions(full_state_dict=sharded, cpu_offload=sharded)
    state["model"], state["optimizer"] = get_state_dict(raw_model, optimizer, options=options)
    if not is_first_process():
        return True
    try:
        with atomic_write(path) as f:  # tensor by tensor: no second copy of all
            torch.save(state, f)
        checkpoints.remove_old(os.path.dirname(path), keep_last)
    except (OSError, RuntimeError) as e:  # torch turns some of the one into the other
        print(f"warning: {path} could not be saved ({one_line(e)}): training goes on", flush=True)
        return False
    took = time.time() - t0
    print(f"saved {path} in {took:.1f}s (with a step, what a stop on SIGTERM takes: {took + dt:.1f}s)", flush=True)
    return True

def load_checkpoint(path):
    """A checkpoint of ours or of the original build-nanogpt -> dict. Anything else: one line, exit code 2."""
    return checkpoints.read(path)

def load_model(name):
    """A checkpoint, a Hugging Face directory, gpt2 ... gpt2-xl -> dict of model (weights), config, tokenizer"""
    if not os.path.isdir(name) and not re.fullmatch("gpt2(-medium|-large|-xl)?", name):
        return load_checkpoint(name)
    model = GPT.from_pretrained(name)
    return {"model": model.state_dict(), "config": asdict(model.config), "tokenizer": saved_spec(name), "path": name}

# ----------------------------------------------------------------------------------------------------
# 7 training

def get_lr(step, config):
    """The learning rate of a step: linear warm-up, then half a cosine down to min_lr (GPT-3, appendix B)."""
    if step < config.warmup_steps:
        return config.max_lr * (step + 1) / config.warmup_steps  # + 1: a step at rate 0 would teach nothing
    if step >= config.max_steps:
        return config.min_lr
    ratio = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)  # 0 -> 1
    return config.min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (config.max_lr - config.min_lr)

def step_seed(seed, step, rank):
    """A number for each step of each process: what is random in a step (dropout) depends on nothing else."""
    return (seed * 1_000_003 + step) * 1_009 + rank

def main(gpt_config, config, typed):
    if config.estimate:
        return print(memory_text(gpt_config, config))
    # --- which run? The settings, the weights to start from, the data ----------------------------------
    checkpoint = checkpoints.find(config)
    start = checkpoint
    if config.init_from and not checkpoint:
        start = load_model(config.init_from)
    if start:
        gpt_config, config, typed = merge_settings(start, gpt_config, config, typed, PRESETS)
    tokenizer, train_shards, val_shards = load_data(config)
    if not start and "vocab_size" not in typed:
        gpt_config.vocab_size = -(-tokenizer.n_vocab // 128) * 128  # rounded up: 50257 -> 50304
    check_settings(gpt_config, config)
    if gpt_config.vocab_size < tokenizer.n_vocab or start and start["tokenizer"] != tokenizer.spec:
        raise UserError(f"the model's vocabulary is not that of {config.data_root}: is it the right --data_root and "
                        f"--tokenizer?")
    # downloaded by one process of each machine; the others wait for it in setup_distributed
    with_hellaswag = config.hellaswag and hellaswag.prepare_for(tokenizer)

    # --- on which machine? Process, device, dtype, batch -----------------------------------------------
    process = setup_distributed(config)
    rank, num_processes, device, autocast = process.rank, process.num_processes, process.device, process.autocast
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")  # and float32 matmuls on GPUs in TF32: 8 bits of range, 10 of precision
    card_name = process.card.name if process.dtype != torch.float32 else ""
    config.B, grad_accum_steps = choose_batch(config, typed, num_processes)
    print0(f"{process.card.kind}, {str(process.dtype)[6:]} ({process.reason}); "
           f"{config.total_batch_size} tokens a step = B {config.B} "
           f"* T {config.T} * {num_processes} process(es) * {grad_accum_steps} micro step(s)")

    # --- data -> loaders -> raw_model -> model -> optimizer, scaler ------------------------------------
    loader_args = (config.T, rank, num_processes, tokenizer.n_vocab, device.type)
    train_loader = DataLoaderLite(train_shards, config.B, *loader_args)
    val_loader = DataLoaderLite(val_shards, 1, *loader_args)
    items = [hellaswag.tokenize_example(e) for e in hellaswag.load_examples()] if with_hellaswag else []
    items *= all_reduce(not items) == [0]  # if one machine has none, nobody measures: we would wait for it for ever
    torch.manual_seed(config.seed)  # the same weights in every process
    raw_model = GPT(gpt_config)
    if start:
        load_weights(raw_model, start["model"], start["path"])
    model = wrap_model(raw_model, config, process)
    optimizer = raw_model.configure_optimizers(config.weight_decay, config.max_lr, (config.beta1, config.beta2))
    # float16 has few bits of exponent: gradients are scaled up, or they would vanish. Disabled, the scaler does nothing
    scaler = torch.amp.GradScaler(device.type, enabled=process.dtype == torch.float16)
    start_step, val_loss = 0, None
    if checkpoint:
        checkpoints.restore(checkpoint, raw_model, optimizer, scaler)
        train_loader.position = checkpoint["position"]
        start_step, val_loss = checkpoint["step"], checkpoint.get("val_loss")
    stream = checkpoints.identify_stream(train_loader)
    if checkpoint:
        checkpoints.check_stream(checkpoint, train_loader, stream, config.data_root)
    settings = {"config": asdict(gpt_config), "train_config": asdict(config), "tokenizer": tokenizer.spec,
                "stream": stream,
                "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}
    log = RunLog()  # one process writes, and none if --max_steps=0 only asks for an evaluation
    if rank == 0 and config.max_steps > 0:
        log = open_log(config.log_dir, settings, checkpoint)

    # --- the loop: `step` counts the updates done; the evals come before the next one ------------------
    t_start, dt, saved, stop, recent_norms = time.time(), 0.0, True, False, []
    signals = process.signals = catch_signals()
    for step in range(start_step, config.max_steps + 1):
        last_step = step == config.max_steps
        if not stop and (last_step or config.eval_every and step % config.eval_every == 0):
            try:
                val_loss = evaluate_val_loss(raw_model, val_loader, config, process)
                left = time_left(time.time() - t_start, step - start_step, config.max_steps - step)
                print0(f"step {step:5d} | validation loss: {val_loss:.4f} | {left}"
                       + compare_to_reference(step, val_loss, gpt_config, config))
                log.write(step, val=f"{val_loss:.4f}")
                if items:
                    t0 = time.time()
                    acc_norm = evaluate_hellaswag(raw_model, items, process)
                    print0(f"step {step:5d} | HellaSwag acc_norm: {acc_norm:.4f} | took {time.time() - t0:.1f}s")
                    log.write(step, hella=f"{acc_norm:.4f}")
                if step > 0 or last_step:
                    print_samples(raw_model, tokenizer, val_loader, process)
            except KeyboardInterrupt:  # end_if_stopped
                stop = True
        if config.save_every and step > start_step and (last_step or stop or step % config.save_every == 0):
            path = os.path.join(config.log_dir, f"model_{step:05d}.pt")
            saved = save_checkpoint(path, config.keep_last, dt, raw_model, optimizer, scaler=scaler.state_dict(),
                                    step=step, position=train_loader.position, val_loss=val_loss, **settings)
        if last_step or stop:
            break

        # ============================== THE STEP ==============================
        t0 = time.time()
        # so a resumed run draws the same random numbers, and no generator's state has to be saved
        torch.manual_seed(step_seed(config.seed, step, rank))
        optimizer.zero_grad(set_to_none=True)
        loss_accum = 0.0
        for micro_step in range(grad_accum_steps):
            x, y = (t.to(device, non_blocking=True) for t in train_loader.next_batch())
            # DDP averages the gradients over all processes, but once a step is enough: in the last micro step. Set this
            # before the forward, which prepares for it: set after it, the model trains too, but much worse, silently
            model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
            with autocast:
                _, loss = model(x, y, ())  # (): no logits
            # backward adds to the gradients: divided here, the sum over the micro steps is the mean over the batch
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
        process.card.synchronize()  # the GPU works on what we queued: only now has it done the step
        dt = time.time() - t0
        # ======================================================================

        norm = getattr(norm, "full_tensor", lambda norm=norm: norm)().item()  # sharded: each process has a part of it
        loss, stop = all_reduce(loss_accum / num_processes, len(signals))
        print0(f"step {step:5d} | loss: {loss:.6f} | lr {lr:.4e} | norm: {norm:.4f} | dt: {dt * 1000:.2f}ms | "
               f"tok/sec: {config.total_batch_size / dt:.2f}"
               + mfu(card_name, gpt_config, config.T, config.total_batch_size / dt / num_processes))
        log.write(step, train=f"{loss:.6f}", lr=f"{lr:.4e}", norm=f"{norm:.4f}", dt=f"{dt * 1000:.2f}")
        check_numbers(step, loss, norm, recent_norms, scaler, train_loader, config)

    if stop:
        print0(f"stopped by {signals[0][0] if signals else 'another process'}: {step} steps are done; go on with "
               "--resume=auto")
    if not saved:
        raise UserError("the last checkpoint could not be saved", exit_code=1)

def run(argv):
    gpt_config, config, typed = parse_flags(argv, __doc__, PRESETS, GPTConfig, TrainConfig)
    try:
        main(gpt_config, config, typed)
    except RuntimeError as e:
        raise explain(e, config.B)  # out of memory, another process is gone
    finally:
        catch_signals(False)
    if dist.is_initialized():
        dist.destroy_process_group()

if __name__ == "__main__":
    run_program(run)
