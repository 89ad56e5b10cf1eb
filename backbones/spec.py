"""Where things are in a frozen backbone: its stack of blocks, its tokens, what stands before and behind the blocks.

Everything else in dmgal asks the spec and never a library; ``finding`` makes the spec of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class BackboneSpec:
    """The parts of a vision transformer. Paths are dotted module names from the model's root.

    ``stem`` and the tail (``pool``, ``norm``, ``project``) take the model first:

    - ``stem``: images ``(B, 3, h, w)`` to the tokens that enter the first block, ``(B, N, C)``;
    - ``pool``: tokens to the backbone's own pooled and normed feature ``(B, C)``;
    - ``norm``: the final norm, on tokens, for pooling patches;
    - ``project``: a feature ``(B, C)`` to ``(B, D)``; the identity where the backbone does not project.
    """

    library: str
    tower: str
    blocks: str
    num_blocks: int
    width: int
    batch_first: bool
    """Whether blocks take ``(B, N, C)`` (else ``(N, B, C)``)."""
    num_prefix_tokens: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pools_prefix: bool
    """Whether the backbone's own pooling reads the first token alone."""
    patch_embedding: str
    """The convolution that embeds patches; its weights tell backbones of one shape apart."""
    stem: Callable[[nn.Module, Tensor], Tensor]
    run_block: Callable[[nn.Module, Tensor], Tensor]
    pool: Callable[[nn.Module, Tensor], Tensor]
    norm: Callable[[nn.Module, Tensor], Tensor]
    project: Callable[[nn.Module, Tensor], Tensor]

    def block_names(self) -> list[str]:
        return [f"{self.blocks}.{index}" for index in range(self.num_blocks)]

    def modules_above_blocks(self, model: nn.Module) -> list[nn.Module]:
        """The model and every module on the way down to the stack of blocks, the stack left out."""
        parts = self.blocks.split(".")[:-1]
        return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]

    def fingerprint(self, model: nn.Module) -> list[float] | None:
        """Four numbers that survive a cast to half precision and differ between trained backbones."""
        weight = model.get_parameter(f"{self.patch_embedding}.weight")
        if weight.is_meta:
            return None
        quarters = weight.detach().double().flatten(1).chunk(4, dim=1)
        return [round(quarter.square().mean().sqrt().item(), 7) for quarter in quarters]


def base_model(model: nn.Module) -> nn.Module:
    """The backbone itself, whether or not PEFT has wrapped it (once or several times)."""
    while callable(unwrap := getattr(model, "get_base_model", None)):
        model = unwrap()
    return model
