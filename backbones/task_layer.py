"""Interface of task layers, which relate the videos of a task.

Before the first task layer a tensor depends on one video, after it on one task.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from .video_state import VideoState


class TaskLayer(Protocol):
    """A layer after a block that relates support and query videos, as the encoder uses it.

    ``rows`` selects the tokens that are used afterwards. After the last block, class-token pooling needs only one row.
    """

    def is_task_layer(self) -> bool:
        """Return True if it currently relates videos. An adapter may be disabled, or of another kind."""

    def set_aside(self) -> AbstractContextManager[None]:
        """Run the block without this layer inside the context: the caller calls ``prepare`` and ``relate`` itself."""

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        """Compute the part that depends on each video alone, from tokens ``(V, T, N, C)``."""

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        """Return support tokens ``(S, T, R, C)`` and query tokens ``(Q, T, R, C)`` of one task, for ``R`` rows."""


class DividedTaskLayer(TaskLayer, Protocol):
    """A task layer that transforms a support video independently of the rest of its task.

    The support state of a video is then computed once, and the cost of a task is that of its queries. Other task
    layers do not define these three methods.
    """

    def support_side(self, state: VideoState, rows: slice) -> tuple[Tensor, VideoState]:
        """Return support tokens ``(S, T, R, C)`` and the tensors that queries attend to, from prepared states."""

    def query_side(self, state: VideoState, rows: slice) -> VideoState:
        """Return the entries of prepared states that videos need as queries."""

    def relate_query(
        self, attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Return tokens ``(E*Q, T, R, C)`` of the query videos of ``E = num_tasks`` tasks of equal sizes.

        ``attended`` (``E*S`` videos) is from ``support_side`` and ``query`` (``E*Q`` videos) from ``query_side``, task
        after task. If ``places (E, S)`` are given, ``attended`` contains any videos, and ``places`` are the indices of
        each task's support videos.
        """


def task_layer_after(block: nn.Module) -> TaskLayer | None:
    """Return the active task layer after a block, or None."""
    child: Any
    for child in block.children():
        # hasattr, because isinstance with a protocol took a third of an evaluation's time
        if hasattr(type(child), "is_task_layer") and child.is_task_layer():
            return child
    return None
