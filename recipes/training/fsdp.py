"""Weights sharded by FSDP2: gathered for saving and validation, sharded again on loading.

Every function returns tensors that are not sharded unchanged, so callers need not distinguish the two.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.optim import Optimizer

from dmgal.backbones.recomputation import carries_state
from dmgal.backbones.spec import base_model
from dmgal.backbones.state import task_layer_after
from dmgal.errors import DmgalError, first_line

_HIDDEN = "not in the module tree"
"""Part of the torch error about weights that a LoRA on nn.MultiheadAttention hides."""


def shard_blocks(accelerator: Accelerator, recognizer: nn.Module) -> None:
    """Shard the weights of each block if the launcher requested FSDP. Accelerate shards the remaining weights.

    Blocks that cannot be sharded alone, see `is_sharded_alone`, are left to Accelerate. Call this before creating the
    optimizer, because sharding replaces the parameters.

    Accelerate offers FSDP on accelerators only. FSDP of torch also works on CPUs, so it is enabled for them here.

    Raises:
        DmgalError: FSDP version 1 was requested, or an adapter hides weights from FSDP.
    """
    requested = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if requested and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise DmgalError(
            "This version of FSDP is not supported.",
            received=f"fsdp_version {plugin.fsdp_version}",
            expected="fsdp_version 2, whose parameters may be frozen one by one",
            remedy="Use recipes/configs/launch/fsdp.yaml.",
        )
    plugin.auto_wrap_policy = None
    plugin.mixed_precision_policy = None  # autocast alone sets the precision; this policy would also cast the weights
    for block in blocks_of(recognizer.encoder):
        if is_sharded_alone(block):
            try:
                fully_shard(
                    block,
                    reshard_after_forward=plugin.reshard_after_forward,
                    mp_policy=MixedPrecisionPolicy(),
                    offload_policy=plugin.cpu_offload or OffloadPolicy(),
                )
            except AssertionError as error:
                if _HIDDEN not in str(error):
                    raise
                raise _hidden_weights(error) from error


def is_sharded_alone(block: nn.Module) -> bool:
    """Return True if the weights of a block are used only while the block itself runs forward and backward.

    A task layer is called again after the block's forward pass, when the block's own weights would already be released.
    A state that adapters pass from block to block takes gradients past the block's output, from which FSDP learns that
    the weights are needed for the backward pass.
    """
    return task_layer_after(block) is None and not carries_state(block)


@contextmanager
def optimizer_follows(accelerator: Accelerator, optimizer: Optimizer, model: nn.Module) -> Iterator[None]:
    """Let FSDP replace the model's parameters in this context, and give the optimizer the new ones of the same names.

    Accelerate identifies parameters by the memory address of their shards. Empty shards, of parameters with fewer rows
    than processes, share one address.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    yield
    if accelerator.distributed_type == DistributedType.FSDP:
        new_parameters = dict(model.named_parameters())
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [new_parameters[name] for name in members]


@contextmanager
def gathered_weights(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every process for the duration of the context, so that each can run the model alone."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        fully_shard.state(shard)._lazy_init()  # type: ignore[attr-defined]
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(shard is not model, recurse=False)


def _hidden_weights(error: AssertionError) -> DmgalError:
    return DmgalError(
        "FSDP cannot shard the blocks of this model.",
        received=first_line(error)[:200],
        expected="blocks whose weights are all registered in modules. A LoRA on nn.MultiheadAttention hides some",
        remedy="Exclude the attention from the LoRA, for open_clip with --adapter.target_modules '[c_fc, c_proj]', or "
        "use DDP (recipes/configs/launch/several_gpus.yaml).",
    )


def blocks_of(encoder: Any) -> list[nn.Module]:
    """Return the blocks of an encoder's backbone in order, or an empty list if it has no stack of blocks."""
    spec = getattr(encoder, "spec", None)
    return [] if spec is None else [base_model(encoder.backbone).get_submodule(name) for name in spec.block_names()]
