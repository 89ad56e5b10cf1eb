"""Watches a model of any make while it works on a few images, and tells where its tokens and their places are.

The dummy images differ in single pixels of the corners: the tokens that change with them say which token is the first
patch, how many patches a row has and which is the last, whatever the model does to cut its patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor], Any]
"""How a model is run on images."""


@dataclass(frozen=True)
class Call:
    """One call of a module while it was watched."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def input(self) -> Any:
        """The first argument, by position or by name."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def result(self) -> Any:
        """What the module returned; of a tuple, its first element."""
        return self.output[0] if isinstance(self.output, tuple) and self.output else self.output

    @property
    def keeps_shape(self) -> bool:
        """Whether it made a tensor of tokens from one of the same shape."""
        both = (self.input, self.result)
        return all(isinstance(x, Tensor) and x.ndim == 3 for x in both) and self.input.shape == self.result.shape

    @property
    def other_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All but the first."""
        if self.args:
            return self.args[1:], self.kwargs
        return (), dict(list(self.kwargs.items())[1:])

    @property
    def is_plain(self) -> bool:
        """Whether the other arguments are constants, so that the call can be made again with other tokens."""
        others, named = self.other_arguments
        return _is_constant((*others, *named.values()))


def _is_constant(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, (bool, int, float, str))


def corner_images(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of two and one of three: noise; with another first pixel; again noise; other last pixels of the first and
    of the last row."""
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
    """The calls of the named modules in the order in which they ended, and what the model returned."""
    calls: list[Call] = []

    def recorder(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
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
    """Evaluation mode for a while; each module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def batch_dimension(two: Tensor, three: Tensor) -> int | None:
    """Which dimension of the tokens of two and of three images counts them: 0, 1 or none of the two."""
    for dimension in (0, 1):
        rest = [[*x.shape[:dimension], *x.shape[dimension + 1 :]] for x in (two, three)]
        if (two.shape[dimension], three.shape[dimension]) == (2, 3) and rest[0] == rest[1]:
            return dimension
    return None


def places(two: Tensor, three: Tensor) -> tuple[int, tuple[int, int]] | None:
    """Number of prefix tokens and grid, from tokens ``(2, N, C)`` and ``(3, N, C)`` of corner images.

    None where the tokens behind the prefix are not patches in rows from the top left to the bottom right.
    """
    changes = [(image - batch[0]).abs().amax(-1) for batch in (two, three) for image in batch[1:]]  # of (N,)
    if any(change.max() == 0 for change in changes):
        return None
    first, right, last = (int(change.argmax()) for change in changes)
    columns, patches = right - first + 1, last - first + 1
    if last != two.shape[1] - 1 or columns < 1 or patches < columns or patches % columns:
        return None
    return first, (patches // columns, columns)
