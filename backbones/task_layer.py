"""A layer in which the videos of one task meet: before it a tensor belongs to one video, after it to one task."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from .video_state import VideoState


class TaskLayer(Protocol):
    """What the encoder asks of a layer that stands after a block and relates support and query videos.

    ``rows`` names the tokens that are read afterwards; a layer after the last block under class-token pooling has to
    finish that one row only.
    """

    def is_task_layer(self) -> bool:
        """Whether it relates videos as it is set now (an adapter may be disabled, or of another kind)."""

    def set_aside(self) -> AbstractContextManager[None]:
        """Lets the block run without it, for a caller that calls ``prepare`` and ``relate`` itself."""

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        """All that can be computed for each video alone, from tokens ``(V, T, N, C)``."""

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        """Tokens of the support ``(S, T, R, C)`` and the query ``(Q, T, R, C)`` of one task, ``R`` rows of them."""


def task_layer_after(block: nn.Module) -> TaskLayer | None:
    """The active task layer that hangs on a block, if any."""
    child: Any
    for child in block.children():
        # by name, because isinstance of a protocol took a third of an evaluation's time
        if hasattr(type(child), "is_task_layer") and child.is_task_layer():
            return child
    return None
