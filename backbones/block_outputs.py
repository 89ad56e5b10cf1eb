"""Blocks that return known outputs, and blocks whose outputs are observed before adapters change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def returning(block: nn.Module, output: Tensor) -> Iterator[None]:
    """Let a block return an output instead of running. Its hooks, and so its adapters, see that output."""
    with _forward_as(block, lambda *args, **kwargs: output):
        yield


@contextmanager
def outputs_of(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the output of each call of blocks, before their hooks. Of a tuple, this is the first element."""
    outputs: list[Tensor] = []

    def observed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            outputs.append(result[0] if isinstance(result, tuple) else result)
            return result

        return call

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_forward_as(block, observed(block.forward)))
        yield outputs


@contextmanager
def _forward_as(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward function of a module, compiled or not."""
    names = ("forward", "_compiled_call_impl")
    own: dict[str, Any] = {name: vars(block)[name] for name in names if name in vars(block)}
    vars(block).update(forward=forward, _compiled_call_impl=None)
    try:
        yield
    finally:
        for name in names:
            vars(block).pop(name, None)
        vars(block).update(own)
