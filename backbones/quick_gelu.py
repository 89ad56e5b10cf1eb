"""CLIP's activation ``x * sigmoid(1.702 x)``: results to the bit as every library's, half of the memory in training.

Written as that product, autograd keeps the sigmoid beside ``x``: together eight widths of the tokens in each block of
a ViT, more than all that a frozen block keeps otherwise. Here ``x`` alone is kept. The sigmoid is computed again on the
way back, which costs less than to write it into fresh memory and to read it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLOPE = 1.702
NAMES = ("QuickGELU", "QuickGELUActivation")
"""Of its classes in open_clip and timm, and in transformers."""


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)`` of a tensor of any shape (D. Hendrycks, K. Gimpel, arXiv 1606.08415)."""

    def forward(self, entering: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler chooses by itself what it keeps
            return entering * torch.sigmoid(SLOPE * entering)
        result: Tensor = _QuickGELU.apply(entering)  # type: ignore[no-untyped-call]
        return result


class _QuickGELU(torch.autograd.Function):
    """In place where it can be, since on a CPU fresh memory costs more than arithmetic."""

    @staticmethod
    def forward(ctx: Any, entering: Tensor) -> Tensor:
        ctx.save_for_backward(entering)
        return (SLOPE * entering).sigmoid_().mul_(entering)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As it is ``silu(1.702 x) / 1.702``, its derivative is that of silu: one kernel, which rounds once."""
        (entering,) = ctx.saved_tensors
        steeper = SLOPE * entering
        if steeper.dtype == torch.float16:  # beyond its range the derivative would be no number
            steeper.clamp_(torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)
        result: Tensor = torch.ops.aten.silu_backward.grad_input(gradient, steeper, grad_input=steeper)
        return result


def use_quick_gelu(blocks: Iterable[nn.Module]) -> None:
    """Puts this module where blocks of a backbone have their library's; results and weights stay as they are."""
    for block in blocks:
        for name, module in list(block.named_modules()):
            if type(module).__name__ in NAMES and not isinstance(module, QuickGELU) and _is_the_same(module):
                block.set_submodule(name, QuickGELU())


@torch.no_grad()
def _is_the_same(module: nn.Module) -> bool:
    """Somebody's own of that name may have another slope."""
    numbers = torch.linspace(-9, 9, 37, device="cpu")
    return torch.equal(module(numbers.clone()), QuickGELU()(numbers))
