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


class DividedTaskLayer(TaskLayer, Protocol):
    """A task layer that changes a support video without looking at the rest of its task.

    Then all that a support video is to any query is computed once, and a task costs what its queries cost. A task layer
    that cannot promise this leaves these three methods out.
    """

    def support_side(self, state: VideoState, rows: slice) -> tuple[Tensor, VideoState]:
        """Of support videos, from what ``prepare`` gave: tokens ``(S, T, R, C)``, and what queries will look at."""

    def query_side(self, state: VideoState, rows: slice) -> VideoState:
        """The part of what ``prepare`` gave that a query video needs of its own."""

    def relate_query(
        self, attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Tokens ``(E*Q, T, R, C)`` of the query videos of ``E = num_tasks`` tasks of equal sizes.

        ``attended`` (of ``E*S`` videos) and ``query`` (of ``E*Q``) come from the two sides, task after task. Given
        ``places (E, S)``, ``attended`` holds any videos, and the places say which of them are a task's support.
        """


def task_layer_after(block: nn.Module) -> TaskLayer | None:
    """The active task layer that hangs on a block, if any."""
    child: Any
    for child in block.children():
        # by name, because isinstance of a protocol took a third of an evaluation's time
        if hasattr(type(child), "is_task_layer") and child.is_task_layer():
            return child
    return None
