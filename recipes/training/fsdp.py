"""Weights that FSDP2 divides among the processes: made whole for files and validation, divided again on loading.

A tensor that is not divided passes through all of this as it is, so that the callers need not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from dmgal.backbones.spec import base_model
from dmgal.backbones.task_layer import task_layer_after
from dmgal.errors import DmgalError, first_line

_HIDDEN = "not in the module tree"
"""So torch says of weights that a LoRA on nn.MultiheadAttention hides."""


def divide_blocks(accelerator: Accelerator, recognizer: nn.Module) -> None:
    """Divides the weights of each block, where the launcher asked for FSDP; Accelerate does the same to the rest.

    A block with a task layer stays in the rest: the task layer is asked again when the block is done and its weights
    would be gone. Before an optimizer is made, because the parameters become others.

    Accelerate offers FSDP on accelerators only; torch's works between CPUs as well, so it is opened for them here.

    Raises:
        DmgalError: FSDP of version 1 was asked for, or an adapter hides weights from it.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
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
            remedy="use recipes/configs/launch/fsdp.yaml",
        )
    plugin.auto_wrap_policy = None
    plugin.mixed_precision_policy = None  # half precisions are autocast's: Accelerate would cast the weights as well
    for block in blocks_of(recognizer):
        if task_layer_after(block) is None:
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


@contextmanager
def optimizer_follows(accelerator: Accelerator, optimizer: Optimizer, model: nn.Module) -> Iterator[None]:
    """Within it FSDP may replace the model's parameters; afterwards the optimizer holds those of the same names.

    Accelerate tells parameters apart by where their parts lie, which empty parts, of parameters with fewer rows than
    there are processes, do not tell.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    yield
    if accelerator.distributed_type == DistributedType.FSDP:
        now = dict(model.named_parameters())
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [now[name] for name in members]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Within it every process has all weights, and each may run the model on its own."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        fully_shard.state(part)._lazy_init()  # type: ignore[attr-defined]
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(values: Mapping[str, Tensor], likes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, divided as those of the same names are."""
    return {name: placed(value, likes.get(name, value)) for name, value in values.items()}


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor with the device and the dtype of another, and divided as that one is."""
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


def _hidden_weights(error: AssertionError) -> DmgalError:
    return DmgalError(
        "FSDP cannot divide the blocks of this model.",
        received=first_line(error)[:200],
        expected="blocks whose weights are all their modules' own; a LoRA on nn.MultiheadAttention hides some",
        remedy="leave the attention out, as --adapter.target_modules '[c_fc, c_proj]' does for open_clip; or use DDP "
        "(recipes/configs/launch/several_gpus.yaml)",
    )


def blocks_of(recognizer: Any) -> list[nn.Module]:
    """The backbone's blocks, in their order; none of a backbone that has no stack of them."""
    encoder = recognizer.encoder
    spec = getattr(encoder, "spec", None)
    return [] if spec is None else [base_model(encoder.backbone).get_submodule(name) for name in spec.block_names()]
