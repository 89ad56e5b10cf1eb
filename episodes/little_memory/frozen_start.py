"""The start of an encoding that nothing trained stands before or in: its result is kept, and it never runs again.

Where the first adapter stands behind block 0, that block is such a start; where adapters begin late, most blocks are.
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


class _Reached(Exception):
    """The start has been computed; what follows is not asked for."""


class FrozenStart:
    """The blocks of a recognizer's backbone that give results without a gradient, hooks behind the last left out.

    Args:
        blocks: in their order; none where the start is not worth a thing, or draws at random, which would shift what
            is drawn later.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks

    @classmethod
    def of(cls, recognizer: FewShotRecognizer, video: Tensor) -> FrozenStart:
        """Found by encoding a video ``(1, T, 3, H, W)``, gradients on, up to the first block that wants one."""
        spec = getattr(recognizer.encoder, "spec", None)
        names = spec.block_names() if spec else []
        blocks = [base_model(recognizer.encoder.backbone).get_submodule(name) for name in names]
        frozen: list[nn.Module] = []
        start = RandomState.now(video.device)

        def look(block: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
            result = forward(*inputs, **options)
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_iter(result)):
                raise _Reached
            if not RandomState.now(video.device).equals(start):
                raise _Reached
            frozen.append(block)
            return result

        with torch.enable_grad(), _instead(blocks, look):
            _until_reached(recognizer, video)
        start.restore()
        return cls(blocks[: len(frozen)] if frozen == blocks[: len(frozen)] else [])

    def result(self, recognizer: FewShotRecognizer, videos: Tensor) -> Any:
        """What the last of these blocks gives for videos; None where there are no blocks."""
        found: list[Any] = []

        def stop(block: nn.Module, forward: Any, *inputs: Any, **options: Any) -> Any:
            found.append(forward(*inputs, **options))
            raise _Reached

        if self.blocks:
            with torch.no_grad(), _instead(self.blocks[-1:], stop):
                _until_reached(recognizer, videos)
        return found[0] if found else None

    @contextmanager
    def known(self, result: Any) -> Iterator[None]:
        """Within it these blocks compute nothing: each gives the result of the last, and hooks act on that."""
        with _instead(self.blocks, lambda block, forward, *inputs, **options: result):
            yield


@contextmanager
def _instead(blocks: Sequence[nn.Module], act: Any) -> Iterator[None]:
    """Calls ``act(block, forward, ...)`` where a block's ``forward`` would be called."""
    with ExitStack() as stack:
        for block in blocks:
            before = vars(block).get("forward")

            def instead(*inputs: Any, _block: nn.Module = block, _forward: Any = block.forward, **options: Any) -> Any:
                return act(_block, _forward, *inputs, **options)

            vars(block)["forward"] = instead
            stack.callback(_put_back, block, before)
        yield


def _put_back(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del vars(block)["forward"]
    else:
        vars(block)["forward"] = forward


def _until_reached(recognizer: FewShotRecognizer, videos: Tensor) -> None:
    try:
        recognizer.encode(videos)
    except _Reached:
        return
