"""Cheap work that keeps only what enters it for the backward pass, and is done again there.

What a bottleneck computes costs little beside a frozen block, but its attention maps would take more memory than what a
block keeps of its own attention. Unlike ``torch.utils.checkpoint`` it can stand inside a checkpointed block whose
products are kept, and the first time runs as without gradients, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def recomputed(work: Callable[[Tensor], Tensor], entering: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """``work(entering)``, whose intermediate results are not kept.

    Args:
        work: without anything random in it.
        entering: its only input that is not a parameter.
        parameters: all that ``work`` reads.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler chooses by itself what it keeps
        return work(entering)
    result: Tensor = _Recomputed.apply(work, entering, *parameters)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Callable[[Tensor], Tensor], entering: Tensor, *parameters: nn.Parameter) -> Tensor:
        ctx.work, ctx.parameters, ctx.numbers = work, parameters, _numbers_now(entering.device.type)
        ctx.save_for_backward(entering)
        return work(entering)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (entering,) = ctx.saved_tensors
        entering = entering.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad(), ctx.numbers():
            result = ctx.work(entering)
        inputs = (entering, *ctx.parameters)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(result, wanted, gradient, allow_unused=True))
        return None, *(next(found) if tensor.requires_grad else None for tensor in inputs)


def _numbers_now(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What sets autocast as it is now; backward passes run without it."""
    if not torch.amp.is_autocast_available(device):  # the meta device has none
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled)
