"""
Models that are too large for one GPU: each process keeps a share of every weight, its gradient and
its moments (ZeRO-3, Rajbhandari et al. 2020; PyTorch's FSDP2). Come here to change when weights are
gathered, or which processes share them.
"""
import os

import torch.distributed as dist


def shard_model(raw_model, shard, offload, device_type):
    """
    Shard raw_model in place: from now on the weights of a block are whole only while the block
    computes.
        shard    "all": all processes share; "node": the processes of each machine share
        offload  keep the shares in the CPU's memory
    Gradients are sharded again after each micro-step. Whole until the last one, they would take 4
    bytes a parameter on each GPU.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (CPUOffloadPolicy, OffloadPolicy, fully_shard,
                                        register_fsdp_forward_method)
    n = dist.get_world_size()
    if shard == "node":
        # share within a machine, where GPUs are well connected. Each machine has all weights, and
        # gradients are averaged over the machines, as in DDP
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        names = ("replicate", "shard")
        mesh = init_device_mesh(device_type, (n // here, here), mesh_dim_names=names)
    else:
        mesh = init_device_mesh(device_type, (n,))
    policy = CPUOffloadPolicy(pin_memory=device_type == "cuda") if offload else OffloadPolicy()
    # first the blocks, so that each is gathered by itself. In float32: MixedPrecisionPolicy could
    # gather bfloat16, which is half the traffic, but it would round the residual stream, too, and
    # losses would differ from DDP's
    for module in (*raw_model.transformer.h, raw_model):
        fully_shard(module, mesh=mesh, offload_policy=policy)
    # a call of `hidden` gathers the embeddings and ln_f, as a call of forward does
    register_fsdp_forward_method(raw_model, "hidden")
