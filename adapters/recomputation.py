"""Cheap work that keeps next to nothing for the backward pass, and is done again there.

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


def residual_bottleneck(
    tokens: Tensor, down: nn.Linear, between: Callable[[Tensor], Tensor], up: nn.Linear, within: Sequence[nn.Parameter]
) -> Tensor:
    """``tokens + up(between(down(tokens)))``, of which only what ``down`` gives is kept.

    The weights of ``down`` want the tokens for their gradient. They are found again as the result less the change, to
    rounding; and the result is kept anyway by whatever reads it, such as the next block's norm.

    Args:
        tokens: in full precision, ``(..., C)``.
        down, between, up: without anything random in them.
        within: all parameters that ``between`` reads.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return add_change(up(between(down(tokens))), tokens)
    parameters = (down.weight, down.bias, up.weight, up.bias, *within)
    result: Tensor = _ResidualBottleneck.apply(down, between, up, tokens, *parameters)  # type: ignore[no-untyped-call]
    return result


def add_change(change: Tensor, tokens: Tensor) -> Tensor:
    """Their sum, in the memory of the change where it has the tokens' type."""
    return change.add_(tokens) if change.dtype == tokens.dtype else tokens + change


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


class _ResidualBottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        down: nn.Linear,
        between: Callable[[Tensor], Tensor],
        up: nn.Linear,
        tokens: Tensor,
        *parameters: nn.Parameter,
    ) -> Tensor:
        reduced = down(tokens)
        result = add_change(up(between(reduced)), tokens)
        ctx.change = lambda reduced: up(between(reduced))
        ctx.down, ctx.others = parameters[:2], parameters[2:]
        ctx.numbers = _numbers_now(tokens.device.type)
        ctx.save_for_backward(reduced, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reduced, result = ctx.saved_tensors
        reduced = reduced.detach().requires_grad_()
        with torch.enable_grad(), ctx.numbers():
            change = ctx.change(reduced)
        inputs = (reduced, *(parameter for parameter in ctx.others if parameter.requires_grad))
        found = torch.autograd.grad(change, inputs, gradient.to(change.dtype), allow_unused=True)
        of_others = iter(found[1:])
        tokens = result - change.detach()
        return (
            *(None, None, None),
            *_through_linear(ctx, found[0], tokens, gradient),
            *(next(of_others) if parameter.requires_grad else None for parameter in ctx.others),
        )


def _through_linear(
    ctx: Any, of_reduced: Tensor, tokens: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the tokens, on both of their ways, and of the weight and the bias of ``down``."""
    weight, bias = ctx.down
    wants_tokens, wants_weight, wants_bias = ctx.needs_input_grad[3:6]
    narrow = of_reduced.flatten(0, -2)
    of_tokens = of_weight = of_bias = None
    if wants_tokens:
        of_tokens = add_change((narrow @ weight.to(narrow.dtype)).view_as(gradient), gradient)
    if wants_weight:
        of_weight = (narrow.T @ tokens.flatten(0, -2).to(narrow.dtype)).to(weight.dtype)
    if wants_bias:
        of_bias = narrow.sum(0).to(bias.dtype)
    return of_tokens, of_weight, of_bias


def _numbers_now(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What sets autocast as it is now; backward passes run without it, or where it still holds casts of before."""
    if not torch.amp.is_autocast_available(device):  # the meta device has none
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)
