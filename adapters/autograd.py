"""Autograd functions that recompute cheap intermediate results in the backward pass instead of saving them.

A bottleneck is cheap compared to a frozen block, but its attention maps would take more memory than the block saves for
its own attention. Unlike ``torch.utils.checkpoint``, these functions work inside a checkpointed block that saves its
products. Their forward pass runs without gradients, which is faster.

Gradients of gradients, as of MAML or a gradient penalty, need `differentiable_twice`. The transforms of ``torch.func``
need nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backbones.state import SAVES_EVERYTHING
from ..errors import DmgalError


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Make forward passes in the context differentiable any number of times, at the usual cost of memory.

        with dmgal.adapters.differentiable_twice():
            loss = task_loss(model(videos))
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)

    The backward pass may run outside of the context.
    """
    token = SAVES_EVERYTHING.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention can be differentiated once
            yield
    finally:
        SAVES_EVERYTHING.reset(token)


def _saves_everything() -> bool:
    """Return True if autograd or a compiler chooses what is saved, or nothing is saved at all."""
    is_transformed = torch._C._are_functorch_transforms_active()  # grad, vmap, jvp of torch.func
    return not torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed or SAVES_EVERYTHING.get()


def _check_differentiated_once() -> None:
    if torch.is_grad_enabled():  # only with create_graph=True
        raise DmgalError(
            "This gradient of an adapter cannot be differentiated again.",
            received="a backward pass with create_graph=True",
            expected="a forward pass inside `with dmgal.adapters.differentiable_twice():`",
            remedy="Run the forward pass in this context, or use torch.func.",
        )


def recomputed(work: Callable[[Tensor], Tensor], inputs: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return ``work(inputs)`` without saving its intermediate results.

    The function is deterministic and reads nothing else than its input and these parameters.
    """
    if _saves_everything():
        return work(inputs)
    result: Tensor = _Recomputed.apply(work, inputs, *parameters)  # type: ignore[no-untyped-call]
    return result


def residual_bottleneck(
    tokens: Tensor, down: nn.Linear, between: Callable[[Tensor], Tensor], up: nn.Linear, within: Sequence[nn.Parameter]
) -> Tensor:
    """Return ``tokens + up(between(down(tokens)))`` and save only the output of ``down``.

    The weight gradient of ``down`` needs the tokens. The backward pass reconstructs them, up to rounding, as the result
    minus the change. Whatever reads the result, such as the next block's norm, saves it anyway.

    Args:
        tokens: ``(..., C)`` in full precision.
        down, between, up: deterministic functions.
        within: all parameters that ``between`` reads.
    """
    if _saves_everything():
        return add_change(up(between(down(tokens))), tokens)
    parameters = (down.weight, down.bias, up.weight, up.bias, *within)
    result: Tensor = _ResidualBottleneck.apply(down, between, up, tokens, *parameters)  # type: ignore[no-untyped-call]
    return result


def add_change(change: Tensor, tokens: Tensor) -> Tensor:
    """Return the sum, computed in place in ``change`` if both dtypes are equal."""
    return change.add_(tokens) if change.dtype == tokens.dtype else tokens + change


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Callable[[Tensor], Tensor], inputs: Tensor, *parameters: nn.Parameter) -> Tensor:
        ctx.work, ctx.parameters, ctx.autocast = work, parameters, _current_autocast(inputs.device.type)
        ctx.save_for_backward(inputs)
        return work(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _check_differentiated_once()
        (inputs,) = ctx.saved_tensors
        inputs = inputs.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad(), ctx.autocast():
            result = ctx.work(inputs)
        sources = (inputs, *ctx.parameters)
        trained = [tensor for tensor in sources if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(result, trained, gradient, allow_unused=True))
        return None, *(next(gradients) if tensor.requires_grad else None for tensor in sources)


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
        ctx.down, ctx.other_parameters = parameters[:2], parameters[2:]
        ctx.autocast = _current_autocast(tokens.device.type)
        ctx.save_for_backward(reduced, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _check_differentiated_once()
        reduced, result = ctx.saved_tensors
        reduced = reduced.detach().requires_grad_()
        with torch.enable_grad(), ctx.autocast():
            change = ctx.change(reduced)
        trained = [parameter for parameter in ctx.other_parameters if parameter.requires_grad]
        of_reduced, *of_trained = torch.autograd.grad(
            change, (reduced, *trained), gradient.to(change.dtype), allow_unused=True
        )
        remaining = iter(of_trained)
        of_others = [next(remaining) if parameter.requires_grad else None for parameter in ctx.other_parameters]
        tokens = result - change.detach()
        # `down`, `between` and `up` are no tensors and get no gradient.
        return None, None, None, *_down_gradients(ctx, of_reduced, tokens, gradient), *of_others


def _down_gradients(
    ctx: Any, of_reduced: Tensor, tokens: Tensor, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the tokens (through ``down`` and the residual), and of weight and bias of ``down``."""
    weight, bias = ctx.down
    needs_tokens, needs_weight, needs_bias = ctx.needs_input_grad[3:6]
    narrow = of_reduced.flatten(0, -2)
    of_tokens = of_weight = of_bias = None
    if needs_tokens:
        of_tokens = add_change((narrow @ weight.to(narrow.dtype)).view_as(gradient), gradient)
    if needs_weight:
        of_weight = (narrow.T @ tokens.flatten(0, -2).to(narrow.dtype)).to(weight.dtype)
    if needs_bias:
        of_bias = narrow.sum(0).to(bias.dtype)
    return of_tokens, of_weight, of_bias


def _current_autocast(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a context manager that restores the current autocast state in the backward pass.

    Backward passes run without autocast, or inside a region whose cache holds casts of the forward pass.
    """
    if not torch.amp.is_autocast_available(device):  # the meta device has none
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)
