"""A model too large for one card, in shards on many: accelerate's FSDP2, which `accelerate launch` asks for.

Each block of the language model is put together while it computes, and no longer. What lies around the
blocks (heads, the answer token's row, the table of embeddings, a vision tower) is held whole by every process
while a step lasts: a process whose posts have no picture would not take part in putting a tower together, and
the others would wait for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from selftrain.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

_BLOCK = re.compile(r"(.+?\.\d+)\.")


def check_sharding(accelerator: Accelerator) -> None:
    """Set up FSDP2 where it is asked for; TrainingError: what cannot be had of it."""
    if not _asked():
        return
    if accelerator.distributed_type != "FSDP":
        if accelerator.num_processes > 1:
            raise TrainingError(
                "--use_fsdp asks for shards, which accelerate makes on GPUs; these"
                f" {accelerator.num_processes} processes train on {accelerator.device.type}. Leave it out, or"
                " set training.device"
            )
        return
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise TrainingError(
            "--use_fsdp is of version 1, in which frozen weights and trained ones cannot lie together: give"
            " --fsdp_version 2 as well"
        )
    # autocast multiplies in bfloat16; shards in it would round what is trained, and its gradients' sums
    plugin.mixed_precision_policy = None
    # every process tells a base model by its weights, so that each reads them
    plugin.cpu_ram_efficient_loading = False
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def wrap_by_block(accelerator: Accelerator, module: nn.Module, layers: Sequence[str]) -> None:
    """Say, before a model is prepared, that the blocks which hold `layers` of `module` are its units.

    What `accelerate launch` was told about wrapping is not asked: no other choice works for every batch.
    """
    if not accelerator.is_fsdp2:
        return
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    found = {match[1] for name in layers if (match := _BLOCK.match(name))}
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(module.get_submodule(one)).__name__ for one in found})


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return tensors without gradients, put together where they are shards; those on the CPU.

    Of shards every process has to ask, in the same order; who does not `keep` them gets nothing.
    """
    found = {}
    for name, one in tensors.items():
        part: Any = one.detach()
        tensor: Tensor = part.full_tensor() if _is_shard(part) else part
        if keep:
            found[name] = tensor.cpu()
    return found


def laid_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a whole tensor, where `like` is one; else the tensor."""
    shard: Any = like
    if not _is_shard(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # every process has the whole tensor: nothing has to be sent
    return distribute_tensor(tensor.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)


def held_whole(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters that this process holds whole, after a forward pass of its own."""
    return [one for one in model.parameters() if one.requires_grad and not _is_shard(one)]


def release(model: nn.Module) -> None:
    """Go back to shards after forward passes without a backward pass; other models are as they were."""
    sharded: Any = model
    if hasattr(model, "reshard"):
        sharded.reshard()


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _asked() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
