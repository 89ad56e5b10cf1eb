"""CLIP's activation ``x * sigmoid(1.702 x)``, bit-identical to every library's, with half the memory in training.

For that product, autograd saves the sigmoid in addition to ``x``. Together they are eight widths of the tokens in each
block of a ViT, more than a frozen block saves otherwise. Here only ``x`` is saved. The backward pass recomputes the
sigmoid, which is cheaper than writing it to new memory and reading it again.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx

from .spec import is_hooked

SLOPE = 1.702
NAMES = ("QuickGELU", "QuickGELUActivation")
"""Names of the class in open_clip and timm, and in transformers."""
Model = TypeVar("Model", bound=nn.Module)


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)`` for a tensor of any shape (D. Hendrycks, K. Gimpel, arXiv 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape ``(...)`` to the same shape."""
        if torch.compiler.is_compiling():  # a compiler selects itself which tensors are saved
            return x * torch.sigmoid(SLOPE * x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _value(x)
        result: Tensor = _QuickGELU.apply(x)  # type: ignore[no-untyped-call]
        return result


def _value(x: Tensor) -> Tensor:
    """Compute the activation with a single allocation, because on a CPU allocation costs more than arithmetic."""
    return (SLOPE * x).sigmoid_().mul_(x)


class _QuickGELU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _value(x)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> Tensor:
        """Return the gradient by the kernel for silu, which rounds once: the value is ``silu(1.702 x) / 1.702``."""
        (x,) = ctx.saved_tensors
        scaled = SLOPE * x
        if torch.is_grad_enabled():  # the gradient will be differentiated again
            sigmoid = torch.sigmoid(scaled)
            return gradient * sigmoid * (1 + scaled * (1 - sigmoid))
        if scaled.dtype == torch.float16:  # infinite values would make the derivative NaN
            scaled.clamp_(torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)
        result: Tensor = torch.ops.aten.silu_backward.grad_input(gradient, scaled, grad_input=scaled)
        return result


def use_memory_efficient_gelu(model: Model) -> Model:
    """Replace the libraries' QuickGELU modules inside a model by this one, and return the model.

    Results are bit-identical and the state dict stays the same. Modules with hooks are left alone.
    """
    for name, module in list(model.named_modules()):
        if type(module).__name__ in NAMES and not isinstance(module, QuickGELU) and _is_replaceable(module):
            model.set_submodule(name, QuickGELU().train(module.training))
    return model


@torch.no_grad()
def _is_replaceable(module: nn.Module) -> bool:
    """Return True if a module has no hooks and equal results: a class of that name may have another slope."""
    if is_hooked(module):
        return False
    x = torch.linspace(-9, 9, 37, device="cpu")
    return torch.equal(module(x.clone()), QuickGELU()(x))
