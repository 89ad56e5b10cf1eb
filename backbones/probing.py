"""Observation of an unknown model on a few images, to find its blocks, its image size, its tokens and their positions.

The dummy images differ in single corner pixels. The tokens that change with them show which token is the first patch,
how many patches are in a row and which token is the last patch, however the model cuts its patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DmgalError

Run = Callable[[nn.Module, Tensor], Any]
"""A function that runs a model on images."""

REMEDY = """Pass what is missing, e.g. dmgal.backbones.describe_backbone(model, blocks="encoder.blocks",
    image_size=(224, 224), run=lambda model, images: model.encode_image(images)),
    or set the whole spec: model.dmgal_spec = dmgal.backbones.BackboneSpec(...)"""


@dataclass(frozen=True)
class Call:
    """One recorded call of a module."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def input(self) -> Any:
        """The first argument, positional or named."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def result(self) -> Any:
        """The output of the module, or its first element if it is a tuple or a list."""
        return self.output[0] if isinstance(self.output, (tuple, list)) and self.output else self.output

    @property
    def keeps_shape(self) -> bool:
        """True if input and result are tensors of tokens with the same shape."""
        tensors = (self.input, self.result)
        return all(isinstance(x, Tensor) and x.ndim == 3 for x in tensors) and self.input.shape == self.result.shape

    @property
    def other_arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        """All arguments but the first, positional and named."""
        if self.args:
            return self.args[1:], self.kwargs
        return (), dict(list(self.kwargs.items())[1:])

    @property
    def is_plain(self) -> bool:
        """True if the other arguments are constants, so that the call can be repeated with other tokens."""
        others, named = self.other_arguments
        return is_constant((*others, *named.values()))


def is_constant(value: object) -> bool:
    """Return True for a number, a string, None, or a sequence of them."""
    if isinstance(value, (tuple, list)):
        return all(map(is_constant, value))
    return value is None or isinstance(value, (bool, int, float, str))


def corner_images(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch of two and one of three dummy images, which differ in single pixels.

    The first image of both batches is the same noise. In the others, one pixel differs: the first pixel of the first
    row, the last pixel of the first row, and the last pixel of the last row.
    """
    height, width = size
    base = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    changed = []
    for row, column in ((0, 0), (0, width - 1), (height - 1, width - 1)):
        image = base.clone()
        image[:, row, column] += torch.tensor([10.0, -7.0, 4.0])
        changed.append(image)
    two, three = torch.stack([base, changed[0]]), torch.stack([base, changed[1], changed[2]])
    return two.to(like), three.to(like)


@torch.no_grad()
def watch(model: nn.Module, run: Run, images: Tensor, paths: Sequence[str]) -> tuple[list[Call], Any]:
    """Run the model and return the calls of the given modules, in the order in which they ended, and the output."""
    calls: list[Call] = []

    def recorder(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: object) -> None:
            calls.append(Call(path, module, args, dict(kwargs), output))

        return record

    handles = [model.get_submodule(path).register_forward_hook(recorder(path), with_kwargs=True) for path in paths]
    try:
        with evaluating(model):
            return calls, run(model, images)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the context and restore the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def batch_dimension(two: Tensor, three: Tensor) -> int | None:
    """Return the batch dimension, 0 or 1, of the tokens of two and of three images, or None if it is neither."""
    for dimension in (0, 1):
        rest = [[*x.shape[:dimension], *x.shape[dimension + 1 :]] for x in (two, three)]
        if (two.shape[dimension], three.shape[dimension]) == (2, 3) and rest[0] == rest[1]:
            return dimension
    return None


def find_prefix_and_grid(two: Tensor, three: Tensor) -> tuple[int, tuple[int, int]] | None:
    """Return the number of prefix tokens and the grid, from tokens ``(2, N, C)`` and ``(3, N, C)`` of corner images.

    Return None unless the tokens after the prefix are patches in rows from the top left to the bottom right.
    """
    changes = [(image - batch[0]).abs().amax(-1) for batch in (two, three) for image in batch[1:]]  # each (N,)
    if any(change.max() == 0 for change in changes):
        return None
    first, right, last = (int(change.argmax()) for change in changes)
    columns, patches = right - first + 1, last - first + 1
    if last != two.shape[1] - 1 or columns < 1 or patches < columns or patches % columns:
        return None
    return first, (patches // columns, columns)


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
    return image_size_attribute(model) or _square_of_positions(model)


def image_size_attribute(model: nn.Module) -> tuple[int, int] | None:
    """Return the height and width that a model, its config or one of its modules states, or None."""
    holders = [model, getattr(model, "config", None), *model.modules()]
    for holder in holders:
        for name in ("image_size", "img_size"):
            size = _pair(getattr(holder, name, None))
            if size is not None:
                return size
    return None


def _pair(value: object) -> tuple[int, int] | None:
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


def not_found(model: nn.Module, reason: str) -> DmgalError:
    """Return an error that lists the stacks of blocks in a model and explains how to describe it by hand."""
    model_class = f"{type(model).__module__}.{type(model).__qualname__}"
    found_stacks = ", ".join(map(str, stacks(model))) or "none"
    return DmgalError(
        "The parts of this backbone were not found.",
        received=f"{model_class}: {reason}; stacks of equal blocks: {found_stacks}",
        expected="a vision transformer of open_clip, timm or transformers, or any with one stack of equal blocks that "
        "take tokens (B, N, C) or (N, B, C), or a hierarchical or convolutional network whose blocks form a chain",
        remedy=REMEDY,
    )


def is_close(output: Tensor | None, expected: Tensor, tolerance: float) -> bool:
    """Return True if two tensors of equal shape differ by at most a share of the largest expected value."""
    if output is None or output.shape != expected.shape:
        return False
    return bool((output - expected).abs().max() <= tolerance * expected.abs().max())


def is_norm(call: Call) -> bool:
    """Return True for the call of a norm over channels: LayerNorm, RMSNorm or similar names, but no batch norm."""
    module = call.module
    has_norm_name = "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._NormBase)
    return has_norm_name and isinstance(call.input, Tensor) and getattr(call.output, "shape", None) == call.input.shape
