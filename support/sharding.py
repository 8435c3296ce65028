"""
Models too large for one card: each process keeps a share of every weight, its gradient and its
moments (ZeRO-3, Rajbhandari et al. 2020; PyTorch's FSDP2). Come here to change what is gathered
when, or which processes share.
"""
import os

import torch.distributed as dist


def shard_model(raw_model, shard, offload, device_type):
    """
    In place: from now on the weights of a block are gathered while it computes with them. shard:
    "all" processes share, or those of a "node". Gradients are shared out in every micro step: whole
    until the last one, they would take 4 bytes a parameter.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (CPUOffloadPolicy, OffloadPolicy, fully_shard,
                                        register_fsdp_forward_method)
    n = dist.get_world_size()
    if shard == "node":
        # shares within a machine, whose GPUs are well connected; between machines copies, which
        # average as DDP does
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        names = ("replicate", "shard")
        mesh = init_device_mesh(device_type, (n // here, here), mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device_type, (n,))
    policy = CPUOffloadPolicy(pin_memory=device_type == "cuda") if offload else OffloadPolicy()
    # from the inside out: each is gathered by itself, in float32. MixedPrecisionPolicy could gather
    # bfloat16, half the traffic, but it would round the residual stream to that as well, and the
    # losses would no longer be those of DDP
    for module in (*raw_model.transformer.h, raw_model):
        fully_shard(module, mesh=mesh, offload_policy=policy)
    # a call of `hidden` gathers the embeddings and ln_f, as a call of forward does
    register_fsdp_forward_method(raw_model, "hidden")
