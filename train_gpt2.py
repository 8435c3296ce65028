"""
Reproduce GPT-2 (124M) from nothing, to be read top to bottom.

Letters in the comments on shapes
    B rows of a batch    T tokens of a row (time)    C channels, n_embd    nh heads, hs = C / nh    V vocabulary rows
"""
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from fineweb import gpt2_tokenizer

# ----------------------------------------------------------------------------------------------------
# 1 the model

@dataclass
class GPTConfig:
    block_size: int = 1024   # the longest context in tokens: the rows of wpe
    vocab_size: int = 50304  # rows of wte: GPT-2's 50,257 tokens, padded to a multiple of 128, which matmuls like
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
        self.c_proj.adds_to_residual = True  # see GPT._init_weights

    def forward(self, x):
        B, T, C = x.size()
        # every token asks (query), says what it is about (key) and what it has to tell (value)
        qkv = self.c_attn(x).split(C, dim=2)  # three times (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in qkv)  # (B, nh, T, hs)
        # softmax(q k^T / sqrt(hs)) v, each token looking at itself and the past (is_causal). Flash attention (Dao et
        # al. 2022) gets there without ever writing the (T, T) matrix to memory
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, nh, T, hs)
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # the heads side by side again: (B, T, C)
        return self.c_proj(y)

class MLP(nn.Module):
    """Each token by itself thinks over what it has heard. (B, T, C) -> (B, T, C)"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")  # exact GELU was slow in 2018's TensorFlow; the weights expect the tanh
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.c_proj.adds_to_residual = True

    def forward(self, x):
        x = self.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.c_proj(x)  # (B, T, C)

class Block(nn.Module):
    """Communicate, then compute. Norms come before each part, so that the residual stream itself runs through clean."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
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

    def forward(self, idx, targets=None):
        """
        idx (B, T) token ids, T <= block_size; targets (B, T), the token that comes next at each position, or None.
        -> logits (B, T, V) and the mean cross-entropy in nats per token (None without targets).
        """
        B, T = idx.size()
        assert T <= self.config.block_size, f"{T} tokens, but block_size is {self.config.block_size}"
        pos = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B, T, C) + (T, C) -> (B, T, C)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))  # (B, T, V)
        loss = None
        if targets is not None:
            # in float32 also where logits are not: bfloat16 has three digits, a late step gains in the sixth
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())  # (B*T, V), (B*T,) -> ()
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, n_vocab=None, temperature=1.0, top_k=50, generator=None):
        """
        Continue each row of idx (B, T) by max_new_tokens sampled tokens -> (B, T + max_new_tokens). Only the last
        block_size tokens are seen. n_vocab: the tokenizer's size; the padding ids beyond it are never sampled.
        """
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            logits = logits[:, -1, :n_vocab].float() / temperature  # (B, V): what may follow the last token
            # keep the top_k likeliest: the long tail is noise, and one bad token derails all that follow
            values, ids = logits.topk(min(top_k, logits.size(-1)))  # (B, top_k)
            choice = torch.multinomial(F.softmax(values, dim=-1), 1, generator=generator)  # (B, 1)
            idx = torch.cat((idx, ids.gather(1, choice)), dim=1)
        return idx

    @classmethod
    def from_pretrained(cls, name):
        """OpenAI's weights (gpt2 ... gpt2-xl, from the Hugging Face hub), or a directory in their format -> GPT"""
        from huggingface_hub import snapshot_download
        from safetensors.torch import load_file
        files = ["config.json", "model.safetensors"]  # never pytorch_model.bin, which is a pickle
        path = name if os.path.isdir(name) else snapshot_download(f"openai-community/{name}", allow_patterns=files)
        with open(os.path.join(path, files[0]), encoding="utf-8") as f:
            hf = json.load(f)
        model = cls(GPTConfig(hf["n_positions"], hf["vocab_size"], hf["n_layer"], hf["n_head"], hf["n_embd"]))
        weights = load_file(os.path.join(path, files[1]))
        state = {}
        for key, w in weights.items():
            # OpenAI's linear layers are called Conv1D and store (in, out); nn.Linear stores (out, in)
            conv1d = key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            if not key.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask, a constant
                state[re.sub(r"^(?!transformer\.|lm_head\.)", "transformer.", key)] = w.t() if conv1d else w
        state.setdefault("lm_head.weight", state.get("transformer.wte.weight"))
        model.load_state_dict(state)
        return model

    def configure_optimizers(self, weight_decay, learning_rate, betas=(0.9, 0.95)):
        """AdamW (Loshchilov and Hutter 2019), with weight decay on matrices and embeddings only."""
        decay = [p for p in self.parameters() if p.dim() >= 2]
        no_decay = [p for p in self.parameters() if p.dim() < 2]  # biases and norms: there is nothing to regularise
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
        # fused: one kernel for all tensors instead of several for each
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)

# ----------------------------------------------------------------------------------------------------
# 2 the data

class DataLoaderLite:
    """A text as one long circular row of tokens, and a position in it."""

    def __init__(self, tokens, B, T, process_rank=0, num_processes=1):
        self.tokens, self.B, self.T = tokens, B, T
        self.process_rank, self.num_processes = process_rank, num_processes
        self.position = 0  # tokens consumed by all processes together

    def next_batch(self):
        """-> x (B, T) and y (B, T), int64; y is x moved on by one: the token to be predicted at each position."""
        B, T = self.B, self.T
        # one token more than B*T: the last row needs a target too. The next batch begins with that token
        start = self.position + B * T * self.process_rank
        buf = self.tokens[torch.arange(start, start + B * T + 1) % len(self.tokens)]
        self.position += B * T * self.num_processes
        return buf[:-1].view(B, T), buf[1:].view(B, T)

# ----------------------------------------------------------------------------------------------------
# 3 many GPUs: torchrun starts this file once for each of them, and every process runs all of it

def print0(*args):
    """print, by the first process only: eight copies of a line say no more than one."""
    if os.environ.get("RANK", "0") == "0":
        print(*args, flush=True)

def setup_distributed():
    """-> rank (which of all processes this is), how many there are, the torch.device of this one."""
    # torchrun sets these; without it there is one process
    rank, local_rank, num_processes = (int(os.environ.get(name, default)) for name, default in
                                       (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(best)
    # from here on we compare device.type: a device may be called cuda:3
    if device.type == "cuda":
        if num_processes > 1 or device.index is None:
            device = torch.device("cuda", local_rank)  # one GPU a process
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        # NCCL between GPUs, gloo between CPUs: whatever is distributed can be tried on a laptop
        dist.init_process_group({"cuda": "nccl", "cpu": "gloo"}[device.type])
    return rank, num_processes, device

def all_reduce(*values):
    """The sum of each value over all processes -> list of floats. Sums and counts, not means: shares may be uneven."""
    if not dist.is_initialized():
        return [float(v) for v in values]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    sums = torch.tensor([float(v) for v in values], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()

# ----------------------------------------------------------------------------------------------------
# 4 training

def get_lr(step, max_steps=50, max_lr=6e-4, min_lr=6e-5, warmup_steps=10):
    """The learning rate of a step: linear warm-up, then half a cosine down to min_lr (GPT-3, appendix B)."""
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps  # + 1: a step at rate 0 would teach nothing
    if step >= max_steps:
        return min_lr
    ratio = (step - warmup_steps) / (max_steps - warmup_steps)  # 0 -> 1
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (max_lr - min_lr)

def main():
    rank, num_processes, device = setup_distributed()
    torch.manual_seed(1337)
    # a name or a directory on the command line: OpenAI's weights. Otherwise random ones
    model = GPT.from_pretrained(sys.argv[1]) if len(sys.argv) > 1 else GPT(GPTConfig())
    print0(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    model.to(device)
    tokenizer = gpt2_tokenizer()
    with open("input.txt", encoding="utf-8") as f:
        loader = DataLoaderLite(torch.tensor(tokenizer.encode(f.read())), 4, 32, rank, num_processes)
    total_batch_size = 512  # tokens a step; the real run takes 2**19, about the 0.5M of GPT-3 (table 2.1)
    grad_accum_steps = total_batch_size // (loader.B * loader.T * num_processes)
    print0(f"{device.type}; {total_batch_size} tokens a step = B {loader.B} * T {loader.T} "
           f"* {num_processes} process(es) * {grad_accum_steps} micro step(s)")
    # float32 matmuls on GPUs in TF32: 8 bits of range as before, but 10 of precision instead of 23
    torch.set_float32_matmul_precision("high")
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    # autocast: matmuls in bfloat16; norms, the loss and the weights themselves stay in float32
    autocast = torch.autocast(device.type, dtype=torch.bfloat16)
    optimizer = model.configure_optimizers(weight_decay=0.1, learning_rate=6e-4)
    if device.type == "cuda":  # one pass over the code instead of one over the memory for each operation
        model = torch.compile(model)
    if dist.is_initialized():
        model = DDP(model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True)
    for step in range(50):
        t0 = time.time()
        optimizer.zero_grad()
        loss_accum = 0.0
        for micro_step in range(grad_accum_steps):
            x, y = (t.to(device) for t in loader.next_batch())
            # DDP averages the gradients over all processes, but once a step is enough: in the last micro step. Set this
            # before the forward, which prepares for it: set after it, the model trains too, but much worse, silently
            model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
            with autocast:
                _, loss = model(x, y)
            # backward adds to the gradients: divided here, the sum over the micro steps is the mean over the batch
            loss = loss / grad_accum_steps
            loss_accum += loss.detach()
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # one bad batch shall not throw the model
        lr = get_lr(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        synchronize()  # the GPU works on what we queued: only now has it done the step
        dt = time.time() - t0
        loss = all_reduce(loss_accum / num_processes)[0]
        print0(f"step {step:5d} | loss: {loss:.6f} | lr {lr:.4e} | norm: {norm:.4f} | "
               f"dt: {dt * 1000:.2f}ms | tok/sec: {total_batch_size / dt:.2f}")

if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
