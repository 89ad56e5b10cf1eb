"""Search for stacks of equal blocks in any model, and for the size of its images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

_MOST_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class Stack:
    """A ModuleList or Sequential whose children have one type and children of their own."""

    path: str
    keys: tuple[str, ...]
    """Names of the blocks in the stack."""
    kind: str
    width: int

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.keys)

    @property
    def block_paths(self) -> list[str]:
        """Dotted names of the blocks, from the model's root."""
        return [f"{self.path}.{key}" for key in self.keys]

    def __str__(self) -> str:
        return f"{self.path} ({self.num_blocks} x {self.kind}, width {self.width})"


def stacks(model: nn.Module) -> list[Stack]:
    """Return all stacks of equal blocks, outermost first, without those inside a block."""
    result: list[Stack] = []
    for path, module in model.named_modules():
        if not path or not _is_stack(module) or any(path.startswith(f"{stack.path}.") for stack in result):
            continue
        block = next(module.children())
        width = next((parameter.shape[-1] for parameter in block.parameters() if parameter.ndim), 0)
        names = tuple(name for name, _ in module.named_children())
        result.append(Stack(path, names, type(block).__name__, width))
    return result


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    blocks = list(module.children())
    if isinstance(module, nn.Sequential) and len(blocks) == 1:  # a Sequential of one module is no stack
        return False
    return len({type(block) for block in blocks}) == 1 and any(True for _ in blocks[0].children())


def image_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the height and width from a model's attributes or number of positions, or None if unknown."""
    holders = [model, getattr(model, "config", None), *model.modules()]
    for holder in holders:
        for name in ("image_size", "img_size"):
            size = _pair(getattr(holder, name, None))
            if size is not None:
                return size
    return _square_of_positions(model)


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(edge, int) for edge in value):
        return value[0], value[1]
    return None


def _square_of_positions(model: nn.Module) -> tuple[int, int] | None:
    """Return the image size for which the positions are a square of patches and a few prefix tokens, or None."""
    patches = next((m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    positions = next((tensor for name, tensor in tensors if "pos" in name and tensor.is_floating_point()), None)
    if patches is None or positions is None:
        return None
    count = positions.numel() // positions.shape[-1]
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        side = math.isqrt(max(count - prefix, 0))
        if side > 1 and side * side == count - prefix:
            return side * patches.stride[0], side * patches.stride[1]
    return None
