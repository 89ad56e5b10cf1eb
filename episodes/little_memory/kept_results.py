"""Which results of an encoding are kept for the way back, so that they need not be computed again.

A number that a matrix product gives costs as many multiplications as its sum has terms. So what is kept is chosen by
operations per byte, dearest first: in a ViT the MLP's second layer, which reads four times the width, then all that
reads the width. (As ``activation_memory_budget`` of torch.compile does in a graph;
this is for models that run as they are, on torch's selective checkpoint.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]
_PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
_ATTENTION_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Result(NamedTuple):
    """Of one costly operation: its place among those of an encoding, what it took, its size."""

    place: int
    operations: float
    size: int


class CostlyResults(TorchDispatchMode):
    """While it is entered, lists what products, convolutions and attentions gave."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Result] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        if _is_costly(func):
            parts = outcome if isinstance(outcome, (tuple, list)) else (outcome,)
            size = sum(part.nbytes for part in parts if isinstance(part, Tensor))
            self.results.append(Result(len(self.results), _operations(func, args, kwargs or {}, outcome), max(size, 1)))
        return outcome


def dearest(results: Sequence[Result], memory: float) -> frozenset[int]:
    """Places of the results that are worth most per byte, as many as fit into ``memory`` bytes."""
    places = []
    for result in sorted(results, key=lambda result: (-result.operations / result.size, result.place)):
        if result.size > memory:
            break
        memory -= result.size
        places.append(result.place)
    return frozenset(places)


def keeping(places: Collection[int]) -> Callable[[], Contexts]:
    """For torch's checkpoint: all is computed again but the results at these places."""

    def contexts() -> Contexts:
        counted = {False: 0, True: 0}  # on the way there, and when it is computed again

        def policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
            if not _is_costly(operator):
                return CheckpointPolicy.PREFER_RECOMPUTE
            place = counted[context.is_recompute]
            counted[context.is_recompute] += 1
            return CheckpointPolicy.MUST_SAVE if place in places else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)  # type: ignore[no-any-return]

    return contexts


def keeping_products() -> Contexts:
    """For torch's checkpoint: all is computed again but matrix products with fewer columns than terms in their sums."""

    def policy(context: object, operator: object, *arguments: Any, **options: Any) -> CheckpointPolicy:
        if operator in _PRODUCTS:
            terms, columns = arguments[-1].shape
            if terms > columns:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)  # type: ignore[no-any-return]


def _is_costly(operator: Any) -> bool:
    packet = getattr(operator, "_overloadpacket", None)
    return packet in flop_registry or packet is _ATTENTION_ON_CPU


def _operations(operator: Any, args: Any, kwargs: Any, outcome: Any) -> float:
    if operator._overloadpacket is _ATTENTION_ON_CPU:  # torch's table lacks it
        query, key, value = args[:3]
        return float(2 * query.numel() * key.shape[-2] + 2 * query.numel() // query.shape[-1] * value[0, 0].numel())
    return float(flop_registry[operator._overloadpacket](*args, **kwargs, out_val=outcome))
