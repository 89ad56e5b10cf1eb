"""Selection of the results of an encoding that are stored between the two passes instead of recomputed.

Results of matrix products are selected by operations per byte, most expensive first. In a ViT, the first is the MLP's
second layer. ``activation_memory_budget`` of torch.compile does the same in a graph; this module is for eager models.
The blocks before the first trained parameter are not run again either. The state of torch's random generators is
restored for the second pass, so that dropout is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

from ...backbones import FrameEncoder
from ...backbones.recomputation import carries_state
from ..recognizer import Encoder

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]
_PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
_ATTENTION_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Result(NamedTuple):
    """Result of a costly operation: its position in the encoding, its number of operations, and its size in bytes."""

    position: int
    operations: float
    size: int


class CostlyResults(TorchDispatchMode):
    """A context that records the results of matrix products, convolutions and attentions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[Result] = []

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        outcome = func(*args, **(kwargs or {}))
        if _is_costly(func):
            parts = outcome if isinstance(outcome, (tuple, list)) else (outcome,)
            size = sum(part.nbytes for part in parts if isinstance(part, Tensor))
            operations = _count_operations(func, args, kwargs or {}, outcome)
            self.results.append(Result(len(self.results), operations, max(size, 1)))
        return outcome


def most_expensive(results: Sequence[Result], memory: float) -> frozenset[int]:
    """Return the positions of the results with the most operations per byte that fit into ``memory`` bytes."""
    positions = []
    for result in sorted(results, key=lambda result: (-result.operations / result.size, result.position)):
        if result.size > memory:
            break
        memory -= result.size
        positions.append(result.position)
    return frozenset(positions)


def keeping(positions: Collection[int]) -> Callable[[], Contexts]:
    """Return a ``context_fn`` for torch's checkpoint that saves the results at these positions only."""

    def contexts() -> Contexts:
        num_seen = {False: 0, True: 0}  # costly operations, in the forward pass and in the recomputation

        def policy(context: Any, operator: object, *arguments: object, **options: object) -> CheckpointPolicy:
            if not _is_costly(operator):
                return CheckpointPolicy.PREFER_RECOMPUTE
            position = num_seen[context.is_recompute]
            num_seen[context.is_recompute] += 1
            return CheckpointPolicy.MUST_SAVE if position in positions else CheckpointPolicy.PREFER_RECOMPUTE

        pair: Contexts = create_selective_checkpoint_contexts(policy)
        return pair

    return contexts


def keeping_products() -> Contexts:
    """Return contexts for torch's checkpoint that save matrix products with fewer columns than terms in their sums."""

    def policy(context: object, operator: object, *arguments: Any, **options: object) -> CheckpointPolicy:
        if operator in _PRODUCTS:
            terms, columns = arguments[-1].shape
            if terms > columns:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    contexts: Contexts = create_selective_checkpoint_contexts(policy)
    return contexts


def _is_costly(operator: object) -> bool:
    packet = getattr(operator, "_overloadpacket", None)
    return packet in flop_registry or packet is _ATTENTION_ON_CPU


def _count_operations(operator: Any, args: Any, kwargs: Any, outcome: object) -> float:
    if operator._overloadpacket is _ATTENTION_ON_CPU:  # missing in torch's table
        query, key, value = args[:3]
        return float(2 * query.numel() * key.shape[-2] + 2 * query.numel() // query.shape[-1] * value[0, 0].numel())
    return float(flop_registry[operator._overloadpacket](*args, **kwargs, out_val=outcome))


def count_frozen_blocks(encoder: Encoder, video: Tensor) -> int:
    """Return the number of first blocks whose results need no gradient. Zero if the encoder is no `FrameEncoder`.

    Blocks that draw random numbers do not count, because skipping them would shift all later draws. The video
    ``(1, T, 3, H, W)`` is encoded up to the first block that does not count.
    """
    if not isinstance(encoder, FrameEncoder) or carries_state(encoder.backbone):
        return 0
    before, count = RandomState.now(video.device), 0
    last = encoder.first_task_block
    with torch.enable_grad():
        point = encoder.embed(video)
        while not point.tokens.requires_grad and RandomState.now(video.device).equals(before):
            count = point.block
            if count == (encoder.spec.num_blocks if last is None else last):
                break
            point = encoder.advance(point, count + 1)
    before.restore()
    return count


@dataclass(frozen=True)
class RandomState:
    """Random states of the CPU (our own dropout) and of the device (dropout of other libraries)."""

    device: torch.device
    on_cpu: Tensor
    on_device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Return the current state."""
        if device.type == "cpu":
            return cls(device, torch.get_rng_state(), None)
        return cls(device, torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_index(device)))

    def restore(self) -> None:
        """Restore the state, so that the same numbers are drawn as after `now`."""
        torch.set_rng_state(self.on_cpu)
        if self.on_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.on_device, *_index(self.device))

    def equals(self, other: RandomState) -> bool:
        """Return True if both states draw the same numbers."""
        if self.on_device is None or other.on_device is None:
            return torch.equal(self.on_cpu, other.on_cpu)
        return torch.equal(self.on_cpu, other.on_cpu) and torch.equal(self.on_device, other.on_device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one MPS device
