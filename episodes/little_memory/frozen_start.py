"""Frozen start of an encoding: the blocks before the first trained parameter, whose result is stored and reused.

If the first adapter follows block 0, the start is this block. If adapters begin late, it is most of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from ...backbones.spec import base_model
from ..recognizer import FewShotRecognizer
from .random_state import RandomState


class _EncodingStopped(Exception):
    """The rest of the encoding is not needed."""


class FrozenStart:
    """The first blocks of a recognizer's backbone whose results need no gradient, without the hooks of the last one.

    Args:
        blocks: the blocks in order. Empty if there is no such block, or if the start draws random numbers, because
            skipping it would shift all later draws.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks

    @classmethod
    def of(cls, recognizer: FewShotRecognizer, video: Tensor) -> FrozenStart:
        """Find the start by encoding a video ``(1, T, 3, H, W)`` up to the first block that requires a gradient."""
        spec = getattr(recognizer.encoder, "spec", None)
        names = spec.block_names() if spec else []
        blocks = [base_model(recognizer.encoder.backbone).get_submodule(name) for name in names]
        frozen: list[nn.Module] = []
        start = RandomState.now(video.device)

        def record_frozen(block: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
            result = forward(*inputs, **options)
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_iter(result)):
                raise _EncodingStopped
            if not RandomState.now(video.device).equals(start):
                raise _EncodingStopped
            frozen.append(block)
            return result

        with torch.enable_grad(), _replaced_forward(blocks, record_frozen):
            _encode_until_stopped(recognizer, video)
        start.restore()
        return cls(blocks[: len(frozen)] if frozen == blocks[: len(frozen)] else [])

    def result(self, recognizer: FewShotRecognizer, videos: Tensor) -> Any:
        """Return the result of the last block for videos, or None if there are no blocks."""
        results: list[Any] = []

        def stop(block: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
            results.append(forward(*inputs, **options))
            raise _EncodingStopped

        if self.blocks:
            with torch.no_grad(), _replaced_forward(self.blocks[-1:], stop):
                _encode_until_stopped(recognizer, videos)
        return results[0] if results else None

    @contextmanager
    def known(self, result: Any) -> Iterator[None]:
        """Skip the blocks inside the context: each returns the last one's given result, and its hooks still run."""
        with _replaced_forward(self.blocks, lambda block, forward, *inputs, **options: result):
            yield


@contextmanager
def _replaced_forward(blocks: Sequence[nn.Module], act: Any) -> Iterator[None]:
    """Call ``act(block, forward, ...)`` instead of each block's ``forward``."""
    with ExitStack() as stack:
        for block in blocks:
            original = vars(block).get("forward")

            def forward(*inputs: Any, _block: nn.Module = block, _forward: Any = block.forward, **options: Any) -> Any:
                return act(_block, _forward, *inputs, **options)

            vars(block)["forward"] = forward
            stack.callback(_restore_forward, block, original)
        yield


def _restore_forward(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del vars(block)["forward"]
    else:
        vars(block)["forward"] = forward


def _encode_until_stopped(recognizer: FewShotRecognizer, videos: Tensor) -> None:
    try:
        recognizer.encode(videos)
    except _EncodingStopped:
        return
