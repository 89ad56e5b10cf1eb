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

SLOPE = 1.702
NAMES = ("QuickGELU", "QuickGELUActivation")
"""Of its classes in open_clip and timm, and in transformers."""


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)`` of a tensor of any shape (D. Hendrycks, K. Gimpel, arXiv 1606.08415)."""

    def forward(self, entering: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler chooses by itself what it keeps
            return entering * torch.sigmoid(SLOPE * entering)
        if not (torch.is_grad_enabled() and entering.requires_grad):
            return _value(entering)
        result: Tensor = _QuickGELU.apply(entering)  # type: ignore[no-untyped-call]
        return result


def _value(entering: Tensor) -> Tensor:
    """In one piece of fresh memory, which on a CPU costs more than the arithmetic."""
    return (SLOPE * entering).sigmoid_().mul_(entering)


class _QuickGELU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(entering: Tensor) -> Tensor:
        return _value(entering)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As it is ``silu(1.702 x) / 1.702``, its derivative is that of silu: one kernel, which rounds once."""
        (entering,) = ctx.saved_tensors
        steeper = SLOPE * entering
        if torch.is_grad_enabled():  # to be differentiated again
            sigmoid = torch.sigmoid(steeper)
            return gradient * sigmoid * (1 + steeper * (1 - sigmoid))
        if steeper.dtype == torch.float16:  # beyond its range the derivative would be no number
            steeper.clamp_(torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)
        result: Tensor = torch.ops.aten.silu_backward.grad_input(gradient, steeper, grad_input=steeper)
        return result


def use_quick_gelu(blocks: Iterable[nn.Module]) -> None:
    """Puts this module where blocks of a backbone have their library's; results and weights stay as they are.

    One that somebody watches by hooks stays.
    """
    for block in blocks:
        for name, module in list(block.named_modules()):
            if type(module).__name__ in NAMES and not isinstance(module, QuickGELU) and _may_go(module):
                block.set_submodule(name, QuickGELU().train(module.training))


@torch.no_grad()
def _may_go(module: nn.Module) -> bool:
    """Somebody's own of that name may have another slope."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    numbers = torch.linspace(-9, 9, 37, device="cpu")
    return torch.equal(module(numbers.clone()), QuickGELU()(numbers))
