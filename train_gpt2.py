"""
Reproduce GPT-2 (124M) from scratch: the model, the data, the evals and the training loop, to be
read top to bottom. It follows the lecture "Let's reproduce GPT-2 (124M)" and the code that came
with it, build-nanogpt.

    python train_gpt2.py --preset=laptop    # characters of Shakespeare, two minutes on a laptop
    python train_gpt2.py --preset=debug     # 124M parameters, 50 steps: does everything run here?
    python train_gpt2.py                    # the real run, after python fineweb.py
    torchrun --standalone --nproc_per_node=8 train_gpt2.py    # the real run on eight GPUs
    python train_gpt2.py --resume=auto      # continue from the newest checkpoint in log/
    python train_gpt2.py --init_from=gpt2 --max_steps=0       # evaluate OpenAI's GPT-2

Contents
    1 the model         GPTConfig, CausalSelfAttention, MLP, Block, GPT; load_model
    2 the settings      TrainConfig, PRESETS
    3 the data          DataLoaderLite
    4 many GPUs         Process, setup_distributed, wrap_model
    5 the evals         evaluate_val_loss, evaluate_hellaswag, print_samples
    6 training          get_lr, and main: the set-up, then the loop with THE STEP

The plumbing is in support/. One object from there appears all through main: `run` keeps the log and
the checkpoints and handles interruptions. On a first reading skip its calls, and read through its
`with run.phase(...)` blocks: without it the losses are the same to the bit (tests/test_run.py).

Letters in shapes
    B rows in a batch   T tokens in a row (time)   C channels, n_embd   nh heads, hs = C / nh
    V vocab_size, padding included
"""
import math
import time
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint as recompute  # here a checkpoint is a file

import hellaswag
from support import checkpoints, hugging_face, settings
from support import shards as shard_files
from support.batch import compile_and_choose_batch
from support.compiling import compile_model
from support.console import print0, progress, run_program
from support.processes import join_processes, sum_over_processes
from support.prompts import read_tokenizer
from support.run import Run
from support.sharding import shard_model

# --------------------------------------------------------------------------------------------------
# 1 the model


@dataclass(frozen=True)
class GPTConfig:
    block_size: int = 1024  # longest context in tokens: rows of the position embedding
    vocab_size: int | None = 50304  # 50,257 tokens, padded to a multiple of 128, for faster matmuls
    n_layer: int = 12  # number of blocks
    n_head: int = 12  # attention heads in a block
    n_embd: int = 768  # C, numbers per token between the blocks
    dropout: float = 0.0  # share of activations zeroed in training; GPT-2 used 0.1


def causal_attention(layer, q, k, v):
    """softmax(q k^T / sqrt(hs)) v, where token i sees tokens 0 to i. All are (B, nh, T, hs)"""
    # PyTorch uses flash attention where it can (Dao et al. 2022): the (T, T) matrix of attention
    # weights is never written to memory
    dropout_p = layer.attn_dropout if layer.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


class CausalSelfAttention(nn.Module):
    """
    The only place where tokens exchange information (Vaswani et al. 2017, section 3.2).
    (B, T, C) -> (B, T, C)
    """

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.n_head = config.n_head
        self.attn_dropout = config.dropout
        # OpenAI's names, so that OpenAI's weights load; c_ stands for Conv1D, their linear layer.
        # c_attn makes queries, keys and values of all heads in one matmul
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True  # so it starts smaller, see GPT._init_weights
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, attend=None):
        """attend: what to use instead of causal_attention, see GPT.hidden"""
        B, T, C = x.size()
        nh, hs = self.n_head, C // self.n_head
        # query: what a token looks for; key: what it offers; value: what it passes on
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        # each head works on its own share of the channels
        q = q.view(B, T, nh, hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, nh, hs).transpose(1, 2)
        v = v.view(B, T, nh, hs).transpose(1, 2)
        if attend is None:
            attend = causal_attention
        y = attend(self, q, k, v)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)  # concatenate the heads
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Processes each token on its own. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        # a smooth ReLU. The approximation dates from when exact GELU was slow; OpenAI's weights
        # expect it
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = self.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.dropout(self.c_proj(x))  # (B, T, C)


class Block(nn.Module):
    """
    Communicate (attn), then compute (mlp). Pre-norm: each branch reads a normalized copy of the
    residual stream x and adds its result to x itself, so a gradient reaches every block through
    additions alone.
    """

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, attend=None):
        x = x + self.attn(self.ln_1(x), attend)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019), with the parameter names of Hugging Face's GPT2LMHeadModel."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # see hidden
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),  # token embedding
            wpe=nn.Embedding(config.block_size, config.n_embd),  # position embedding
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # weight tying (Press and Wolf 2017): the matrix that turns tokens into vectors also scores
        # them at the end, since similar tokens should be similar in both places. It holds 38.6M of
        # the 124M parameters
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """
        Weights N(0, 0.02^2), biases 0. (OpenAI's code had 0.01 for wpe.)

        A check: the first loss of a 124M model is near 10.98. Equal logits would cost
        ln(50304) = 10.83. Ours have variance s^2 = 768 * 0.02^2 = 0.31, because ln_f's output has
        variance 1, and that costs s^2 / 2 = 0.15 more.
        """
        if isinstance(module, nn.Linear):
            std = 0.02
            if getattr(module, "adds_to_residual", False):
                # each block adds to the residual stream twice. With this factor the sum of all
                # 2 n_layer additions has the same variance at any depth (GPT-2, section 2.3)
                std *= (2 * self.config.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None):
        """
        idx (B, T), token ids; targets (B, T), the token that follows each of them
            model(idx)           -> logits (B, T, V), None
            model(idx, targets)  -> None, loss: the mean cross-entropy in nats per token
        Always a pair, as in the lecture; the half that was not asked for is None.
        """
        x = self.hidden(idx)
        logits = self.lm_head(x)  # (B, T, V)
        if targets is None:
            return logits, None
        # in float32: bfloat16 has 8 bits, too few for a sum of 50,304 exponentials
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        # logits are not returned: a compiled model would have to keep them, and their gradient,
        # until backward ends (13 GB in float32 at B = 64)
        return None, loss

    def hidden(self, idx, position_ids=None, attend=None):
        """
        The model without its head: idx (B, T), token ids -> hidden states (B, T, C), after ln_f.
        Other files replace the positions (several texts in one row), or the attention (a cache of
        keys and values):
            position_ids  (T,) or (B, T), each below block_size; by default 0 to T-1
            attend        attend(layer, q, k, v) -> y, in place of causal_attention
        """
        if position_ids is None:
            position_ids = torch.arange(idx.size(1), device=idx.device)  # (T,)
        x = self.transformer.wte(idx) + self.transformer.wpe(position_ids)  # (B, T, C)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            if self.activation_checkpointing and self.training:
                # keep only the block's input and compute the rest again in backward: less memory,
                # about a third more time (Chen et al. 2016)
                x = recompute(block, x, attend, use_reentrant=False)
            else:
                x = block(x, attend)
        return self.transformer.ln_f(x)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, n_vocab=None, temperature=1.0, top_k=50,
                 generator=None):
        """
        Continue each row of idx (B, T) -> (B, T + max_new_tokens). Each new token recomputes the
        whole text; play.py is faster, because it keeps keys and values. n_vocab: number of real
        tokens; the ids after them are padding and are never sampled.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])  # at most block_size tokens fit
            logits = logits[:, -1].float() / temperature  # (B, V): the last position predicts
            logits = logits[:, :n_vocab]  # without the padding
            # keep the top_k most likely tokens: one bad token from the long tail derails the text
            values, ids = logits.topk(min(top_k, logits.size(1)))  # (B, top_k)
            probs = F.softmax(values, dim=1)
            choice = torch.multinomial(probs, 1, generator=generator)  # (B, 1), among the top_k
            idx = torch.cat((idx, ids.gather(1, choice)), dim=1)
        return idx

    @classmethod
    def from_pretrained(cls, name):
        """OpenAI's weights (gpt2 ... gpt2-xl, from the hub), or a Hugging Face directory -> GPT"""
        theirs = hugging_face.read_gpt2(name)  # transformers' GPT2LMHeadModel
        their_config = theirs.config
        model = cls(GPTConfig(their_config.n_positions, their_config.vocab_size,
                              their_config.n_layer, their_config.n_head, their_config.n_embd))
        # OpenAI's Conv1D layers store (in, out), nn.Linear stores (out, in)
        conv1d = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight",
                  "mlp.c_proj.weight")
        weights = {name: w.t() if name.endswith(conv1d) else w
                   for name, w in theirs.state_dict().items()}
        model.load_state_dict(weights)  # an error if a name or a shape differs
        return model

    def configure_optimizers(self, weight_decay, learning_rate, betas=(0.9, 0.95)):
        """AdamW (Loshchilov and Hutter 2019), with weight decay on matrices and embeddings only."""
        # decay pulls towards zero. That keeps matrices small; a norm's gain belongs near 1, and a
        # bias may be anything
        decay = [p for p in self.parameters() if p.dim() >= 2]
        no_decay = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": weight_decay},
                  {"params": no_decay, "weight_decay": 0.0}]
        # fused: one kernel for all tensors instead of several for each
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)


def load_model(name):
    """
    Read a language model by its name: gpt2 ... gpt2-xl, a Hugging Face directory, a checkpoint, or
    the directory of a run (its newest checkpoint)
    -> GPT in eval mode, on the CPU; its tokenizer; what the file says (dict): model (the weights),
    config, tokenizer, path; a checkpoint adds step, position, optimizer and more
    """
    path = checkpoints.find_file(name)
    if path is None:
        model = GPT.from_pretrained(name)
        saved = {"model": model.state_dict(), "config": asdict(model.config),
                 "tokenizer": hugging_face.tokenizer_spec(name), "path": name}
        tokenizer = read_tokenizer(saved)
    else:
        saved = checkpoints.read(path)
        tokenizer = read_tokenizer(saved)
        model = GPT(GPTConfig(**saved["config"]))
        model.load_state_dict(saved["model"])
    return model.eval(), tokenizer, saved


# --------------------------------------------------------------------------------------------------
# 2 the settings. Each field of GPTConfig and TrainConfig is also a flag, as --T=1024, and the
# comment after it is its text in --help (support/settings.py reads it). None means "choose for me"


@dataclass(frozen=True)
class TrainConfig:
    preset: str = "gpt2"  # a named set of values for both configs, see PRESETS; flags win
    # what goes in and out
    data_root: str = "edu_fineweb10B"  # a directory of token shards, or one text file
    tokenizer: Literal["gpt2", "char"] = "gpt2"  # for a text file: BPE, or one token per character
    log_dir: str = "log"  # where log.txt, settings.json and model_*.pt go
    tensorboard: bool = False  # also write the log for TensorBoard
    init_from: str = ""  # start from gpt2 ... gpt2-xl, a checkpoint or a Hugging Face directory
    resume: str = ""  # a checkpoint, or auto: the newest one in log_dir, if there is one
    # the machine
    device: str = "auto"  # cuda, mps or cpu
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # of the matmuls
    compile: bool | None = None  # torch.compile the step; None: on GPUs, unless --shard is given
    dist_timeout_s: int = 600  # seconds to wait for a process that does not answer
    shard: Literal["no", "all", "node"] = "no"  # FSDP: split the weights over all GPUs, or a node's
    offload: bool = False  # with --shard: weights and Adam's moments in CPU memory
    activation_checkpointing: bool = False  # less memory, a third more time
    estimate: bool = False  # print what memory this needs on 1 to 8 GPUs, and exit
    # the batch
    total_batch_size: int = 2**19  # tokens per step, about GPT-3's 0.5M for this size (table 2.1)
    B: int | None = None  # rows in a micro-batch; None: as many as fit, up to the preset's B
    T: int = 1024  # tokens in a row, at most block_size
    # the optimization. max_lr and the schedule are GPT-3's for this size (table 2.1, appendix B)
    max_steps: int = 19073  # 10e9 tokens / 2**19 tokens a step
    max_lr: float = 6e-4  # peak learning rate
    min_lr: float = 6e-5  # final learning rate, a tenth of the peak
    warmup_steps: int = 715  # steps to reach max_lr: 375M tokens / 2**19 tokens a step
    weight_decay: float = 0.1  # AdamW's, on matrices and embeddings only
    beta1: float = 0.9  # AdamW: decay of the running mean of gradients
    beta2: float = 0.95  # AdamW: decay of the running mean of squared gradients
    grad_clip: float = 1.0  # maximum gradient norm, so that one bad batch cannot derail training
    seed: int = 1337  # of initial weights and dropout; the order of the data is fixed
    # the evals and the checkpoints
    eval_every: int = 250  # steps between evals; 0: only at the end
    val_tokens: int = 20 * 2**19  # tokens in one validation, however many processes share them
    hellaswag: bool = True  # measure HellaSwag too (with GPT-2's tokenizer only)
    save_every: int = 1000  # steps between checkpoints, and one at the end; 0: none at all
    keep_last: int = 2  # checkpoints to keep, 1.5 GB each for 124M


PRESETS = {
    # 124M, 355M, 774M and 1558M parameters. Learning rates: GPT-3 paper, table 2.1. B: the most
    # rows to choose, which fit on 80 GB
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768, B=64),
    "gpt2-medium": dict(n_layer=24, n_head=16, n_embd=1024, max_lr=3e-4, min_lr=3e-5, B=32),
    "gpt2-large": dict(n_layer=36, n_head=20, n_embd=1280, max_lr=2.5e-4, min_lr=2.5e-5, B=16),
    "gpt2-xl": dict(n_layer=48, n_head=25, n_embd=1600, max_lr=2e-4, min_lr=2e-5, B=8),
    # characters of Shakespeare on two CPU cores: two epochs of many small steps, with matmuls too
    # small for bfloat16 to help. A shorter warm-up diverges
    "laptop": dict(
        data_root="input.txt", tokenizer="char", block_size=64, n_layer=4, n_head=3, n_embd=96,
        dtype="float32", T=64, B=8, total_batch_size=512, max_steps=3921, max_lr=4e-3,
        min_lr=2e-4, warmup_steps=200, beta2=0.99, weight_decay=0.3, hellaswag=False),
    # the lecture's first 50 steps: does a model of the real size run here, does its loss fall?
    "debug": dict(
        data_root="input.txt", n_layer=12, n_head=12, n_embd=768, T=32, B=4, total_batch_size=128,
        max_steps=50, max_lr=3e-4, min_lr=3e-4, warmup_steps=0, eval_every=0, val_tokens=4096,
        save_every=0, hellaswag=False),
}


# --------------------------------------------------------------------------------------------------
# 3 the data

load_tokens = shard_files.load_tokens  # opens one shard; run opens all of them with load_data


class DataLoaderLite:
    """
    All shards of a split, read as one circular stream of tokens, with one position that all
    processes share. Together they take the next B * T * num_processes tokens, and process r takes
    the r-th part of them. The order of the data therefore does not depend on B, on the number of
    processes or on the size of a shard, and one number, `position`, is enough to resume.
    """

    def __init__(self, shards, B, T, process_rank=0, num_processes=1, device_type="cpu"):
        self.shards = shards
        self.B, self.T = B, T
        self.process_rank, self.num_processes = process_rank, num_processes
        self.device_type = device_type
        self.ends = list(accumulate(len(shard) for shard in shards))  # of each shard, in the stream
        self.num_tokens = self.ends[-1]
        self.position = 0  # tokens consumed by all processes together since the run began

    def locate(self, position):
        """Position in the stream -> the shard it is in, offset in that shard"""
        position %= self.num_tokens
        i = bisect_right(self.ends, position)  # right: an end belongs to the next shard
        start = self.ends[i] - len(self.shards[i])
        return self.shards[i], position - start

    def read_tokens(self, start, n):
        """n tokens from `start` on, across the ends of shards and of the stream -> (n,) int64"""
        tokens = np.empty(n, dtype=np.int64)
        done = 0
        while done < n:
            shard, offset = self.locate(start + done)
            part = shard[offset : offset + n - done]
            tokens[done : done + len(part)] = part
            done += len(part)
        return torch.from_numpy(tokens)

    def next_batch(self):
        """-> x (B, T), y (B, T), int64: y is x shifted by one, the tokens to predict"""
        B, T = self.B, self.T
        # one token more than B*T: the last target, which is also the first token of the next part
        buf = self.read_tokens(self.position + B * T * self.process_rank, B * T + 1)
        self.position += B * T * self.num_processes
        x, y = buf[:-1].view(B, T), buf[1:].view(B, T)
        if self.device_type == "cuda":
            # from pinned (page-locked) memory the GPU can copy while this process goes on
            x, y = x.pin_memory(), y.pin_memory()
        return x, y


# --------------------------------------------------------------------------------------------------
# 4 many GPUs: torchrun starts this file once for each of them, and every process runs all of it


class Process(NamedTuple):
    """Which process this is, and what it computes with."""
    rank: int  # 0 to num_processes - 1
    num_processes: int
    card: object  # the GPU or CPU, as Card in support/processes.py describes it
    device: torch.device  # may be cuda:3, so compare device.type
    dtype: torch.dtype  # of the matmuls
    dtype_reason: str
    autocast: torch.autocast  # for each forward: matmuls in dtype, norms and weights in float32
    compile: bool  # use torch.compile for the step?


def setup_distributed(config):
    """Find this process's GPU, and meet the other processes that torchrun has started -> Process"""
    # torchrun tells each process its RANK and the WORLD_SIZE; without torchrun there is one process
    rank, num_processes, card = join_processes(config.device, config.shard, config.dist_timeout_s)
    # 16-bit matmuls are several times as fast, where the hardware has them
    if config.dtype != "auto":
        dtype, reason = getattr(torch, config.dtype), "as asked for"
    elif card.kind == "cuda" and card.capability >= (7, 0):
        dtype = torch.bfloat16 if card.capability >= (8, 0) else torch.float16
        major, minor = card.capability
        reason = f"native at compute capability {major}.{minor}"
    elif card.native_bfloat16:
        dtype, reason = torch.bfloat16, "this CPU multiplies it natively"
    else:
        dtype, reason = torch.float32, "no 16-bit type is native here"
    autocast = torch.autocast(card.device.type, dtype=dtype, enabled=dtype != torch.float32)
    compile = config.compile
    if compile is None:  # torch.compile writes Triton for GPUs, which needs capability 7.0
        compile = card.kind == "cuda" and card.capability >= (7, 0) and config.shard == "no"
    return Process(rank, num_processes, card, card.device, dtype, reason, autocast, compile)


def wrap_model(raw_model, config, process):
    """
    Move raw_model to its device, and return it as THE STEP uses it: compiled, and in DDP, which
    averages gradients over all processes while backward is still computing. Both share the same
    weights; evals and checkpoints use raw_model. With --shard raw_model itself is changed and
    returned: each forward gathers weights from all processes, so all must make as many of them.
    """
    raw_model.activation_checkpointing = config.activation_checkpointing
    if config.shard != "no":
        shard_model(raw_model, config.shard, config.offload, process.device.type)
        return raw_model
    model = raw_model.to(process.device)
    if process.compile:
        model = compile_model(model)  # torch.compile, which does its work in the first call
    if dist.is_initialized():
        device_ids = [process.device.index] if process.device.type == "cuda" else None
        # gradients are views of DDP's buffers: one copy of them, not two
        model = DDP(model, device_ids=device_ids, gradient_as_bucket_view=True)
    return model


# --------------------------------------------------------------------------------------------------
# 5 the evals. They use raw_model: the compiled one would be compiled anew for each new shape


def count_val_rows(loader, config):
    """Rows of T tokens in one validation: val_tokens, or all that the split has"""
    return min(config.val_tokens, loader.num_tokens - 1) // config.T  # the last has no target


@torch.no_grad()
def evaluate_val_loss(raw_model, loader, config, process, run):
    """Mean loss over the first val_tokens tokens of the split, in nats per token -> float"""
    T, n = config.T, process.num_processes
    num_rows = count_val_rows(loader, config)
    # at most 8,192 tokens at a time: uncompiled, their logits take 4 GB, 10 bytes each (in 16 bits,
    # in float32, and as log-softmax)
    B = min(config.B, max(1, 8192 // T))
    loss_sum = 0.0
    raw_model.eval()
    for first in progress(range(0, num_rows, B * n), "validation",
                          if_slow="a smaller --val_tokens or a larger --eval_every"):
        run.end_if_any_process_stopped()
        rows = range(first + process.rank, min(first + B * n, num_rows), n)  # of this process
        # all take part, see wrap_model: with no row left, compute row 0 and count nothing
        buf = torch.stack([loader.read_tokens(row * T, T + 1) for row in rows or [0]])
        buf = buf.to(process.device)  # (B, T+1)
        with process.autocast:
            _, loss = raw_model(buf[:, :-1], buf[:, 1:])
        loss_sum += loss * len(rows)  # stays on the device: .item() would wait for the GPU
    raw_model.train()
    # one sum over one count: a mean of the processes' means would not weigh all rows equally
    return sum_over_processes(loss_sum) / num_rows


def evaluate_hellaswag(raw_model, items, process, run):
    """acc_norm: share of items whose correct ending has the lowest mean loss per token -> float"""
    _, num_correct = hellaswag.evaluate(raw_model, items, process,
                                        before_batch=run.end_if_any_process_stopped)
    return sum_over_processes(num_correct) / len(items)


def choose_prompt(tokenizer, loader):
    """What the samples start with, and how many tokens they add -> ids, number of tokens"""
    if tokenizer.spec["name"] == "gpt2":
        return tokenizer.encode("Hello, I'm a language model,"), 24
    # another vocabulary, perhaps another language: start like a line of the validation text. Not
    # the first one, which may start in the middle of a word
    text = tokenizer.decode(loader.read_tokens(0, 500).tolist())
    lines = [line for line in text.split("\n")[1:] if line]
    if lines:
        return tokenizer.encode(lines[0][:8]), 200
    return loader.read_tokens(0, 8).tolist(), 200


def print_samples(raw_model, tokenizer, loader, process):
    """Four texts to look at. All processes generate them, see wrap_model; the first one prints."""
    prompt, num_tokens = choose_prompt(tokenizer, loader)
    # a separate generator: sampling must not change training's random numbers
    generator = torch.Generator(process.device).manual_seed(42)
    idx = torch.tensor([prompt] * 4, device=process.device)  # (4, T)
    raw_model.eval()
    with process.autocast:
        rows = raw_model.generate(idx, num_tokens, tokenizer.n_vocab, generator=generator)
    raw_model.train()
    for i, row in enumerate(rows.tolist()):
        print0(f"sample {i}: {tokenizer.decode(row)}")


# --------------------------------------------------------------------------------------------------
# 6 training


def get_lr(step, config):
    """Learning rate of a step: linear warm-up, then half a cosine to min_lr (GPT-3, appendix B)"""
    if step < config.warmup_steps:
        return config.max_lr * (step + 1) / config.warmup_steps  # + 1: rate 0 would teach nothing
    if step >= config.max_steps:  # after the last step
        return config.min_lr
    ratio = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)  # 0 -> 1
    coefficient = 0.5 * (1.0 + math.cos(math.pi * ratio))  # 1 -> 0
    return config.min_lr + coefficient * (config.max_lr - config.min_lr)


def step_seed(seed, step, rank):
    """
    A seed for each step of each process, so that a resumed run draws the same dropout masks. The
    two factors keep all (seed, step, rank) apart, below 1,000,003 steps and 1,009 processes.
    """
    return (seed * 1_000_003 + step) * 1_009 + rank


def is_due(step, every):
    """Is step a multiple of `every`? Step 0 is; with every = 0, none is."""
    return every > 0 and step % every == 0


def print_choices(config, grad_accum_steps, process, loader, tokenizer):
    """The first lines of a run: what was chosen, and how often the data are read."""
    unit = "character" if tokenizer.spec["name"] == "char" else "token"
    epochs = config.max_steps * config.total_batch_size / loader.num_tokens
    dtype = str(process.dtype).removeprefix("torch.")
    print0(f"{process.card.kind}, {dtype} ({process.dtype_reason}); "
           f"{config.total_batch_size} tokens a step = B {config.B} * T {config.T} * "
           f"{process.num_processes} process(es) * {grad_accum_steps} micro step(s)")
    print0(f"{loader.num_tokens:,} {unit}s to train on: {config.max_steps} steps are "
           f"{epochs:.2f} epochs; losses are in nats per {unit}")


def main(gpt_config, config, max_B, saved, data, run):
    """max_B: the largest B to choose; saved: what --resume or --init_from has read, or None"""
    process = setup_distributed(config)
    # --- the model --------------------------------------------------------------------------------
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs: faster, with 10 bits of precision
    torch.manual_seed(config.seed)  # the same weights in every process
    with run.phase("creating the model", if_out_of_memory="a smaller --vocab_size or --n_embd"):
        raw_model = GPT(gpt_config)
        if saved is not None:
            raw_model.load_state_dict(saved["model"])  # before wrap_model, which may shard them
        model = wrap_model(raw_model, config, process)
    # the largest B that divides the batch and fits: compiled, or uncompiled if compiling fails
    B = compile_and_choose_batch(model, gpt_config, config, max_B, process)
    config = replace(config, B=B)
    optimizer = raw_model.configure_optimizers(config.weight_decay, config.max_lr,
                                               (config.beta1, config.beta2))
    # for float16, whose few bits of exponent would lose small gradients: the loss is scaled up, the
    # gradients down again. With other types nothing is scaled, and scaler.step is optimizer.step
    scaler = torch.amp.GradScaler(process.device.type, enabled=process.dtype == torch.float16)

    # --- the data, and where to start -------------------------------------------------------------
    train_loader = DataLoaderLite(data.train, B, config.T, process.rank, process.num_processes,
                                  process.device.type)
    val_loader = DataLoaderLite(data.val, B, config.T)  # the evals read it row by row
    grad_accum_steps = config.total_batch_size // (B * config.T * process.num_processes)
    print_choices(config, grad_accum_steps, process, train_loader, data.tokenizer)
    # nats per token depend on the tokenizer; in bits per byte of text any two models compare
    val_bytes_per_token = data.val_bytes_per_token(count_val_rows(val_loader, config) * config.T)
    items = hellaswag.load_items_in_all_processes(data.tokenizer) if config.hellaswag else []
    # opens the log; with --resume it also restores moments, scaler and position
    start_step = run.restore(config, process, data.tokenizer, train_loader, raw_model, optimizer,
                             scaler, last_step=config.max_steps)

    # --- the loop: `step` counts the updates done; saving and evals come before the next one ------
    for step in range(start_step, config.max_steps + 1):
        is_last = step == config.max_steps  # no update follows
        # what a checkpoint needs: saved now if due, or when the run ends before the next update
        run.turn(step, model=raw_model, optimizer=optimizer, scaler=scaler.state_dict(),
                 position=train_loader.position)
        run.end_if_any_process_stopped()
        if is_last or is_due(step, config.eval_every):
            with run.phase("validation", if_out_of_memory="a smaller --B"):
                val = evaluate_val_loss(raw_model, val_loader, config, process, run)
                run.log(step, val=val, bpb=val / math.log(2) / val_bytes_per_token)
            if items:
                with run.phase("HellaSwag", if_out_of_memory="--no-hellaswag"):
                    run.log(step, hella=evaluate_hellaswag(raw_model, items, process, run))
            if step > 0 or saved is not None:  # a fresh model writes noise
                with run.phase("writing samples", if_out_of_memory="a smaller --block_size"):
                    print_samples(raw_model, data.tokenizer, val_loader, process)
        if is_last:
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
        loss = sum_over_processes(loss_accum / process.num_processes)
        run.log(step, train=loss, lr=lr, norm=norm.item(), dt=dt)


def run(argv):
    gpt_config, config, max_B, saved = settings.resolve(
        argv, __doc__, GPTConfig, TrainConfig, PRESETS, load_model)
    # downloads come first: once the processes have met, none waits long for another
    data = shard_files.load_data(config.data_root, config.tokenizer, config.T, saved)
    config = replace(config, tokenizer=data.tokenizer.spec["name"])  # shards decide it themselves
    if config.hellaswag:
        hellaswag.prepare(data.tokenizer)
    if gpt_config.vocab_size is None:  # neither a flag nor a checkpoint says it: 50,257 -> 50,304
        padded = 128 * math.ceil(data.tokenizer.n_vocab / 128)
        gpt_config = replace(gpt_config, vocab_size=padded)
    with Run(config, saved) as this_run:
        main(gpt_config, config, max_B, saved, data, this_run)


if __name__ == "__main__":
    run_program(run)
