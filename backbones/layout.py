"""Number of frames per video and of support videos in the current forward call.

A backbone processes ``(V*T, ...)`` frames independently of their videos. The adapters after its blocks need to know the
videos and read the layout here. A layout is valid only during one call. A stale number of frames or support videos
therefore cannot affect a later call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor

from ..errors import DmgalError


class Layout:
    """Number of frames and support videos in the current forward call, shared by all adapters of one backbone."""

    def __init__(self) -> None:
        self._calls: list[tuple[int | None, int | None]] = []

    @property
    def num_support(self) -> int | None:
        """Number of support videos, which come first, or None if unknown."""
        return self._calls[-1][1] if self._calls else None

    @property
    def num_frames(self) -> int | None:
        """Number of frames per video, or None if unknown."""
        return self._calls[-1][0] if self._calls else None

    def enter(self, num_frames: int | None = None, num_support: int | None = None) -> None:
        """Begin a call. A value of None is inherited from the outer call."""
        outer_frames, outer_support = self._calls[-1] if self._calls else (None, None)
        self._calls.append(
            (outer_frames if num_frames is None else num_frames, outer_support if num_support is None else num_support)
        )

    def tell(self, num_frames: int | None, num_support: int | None) -> None:
        """Set values of the current call that were unknown when it began."""
        frames, support = self._calls[-1]
        self._calls[-1] = (
            frames if num_frames is None else num_frames,
            support if num_support is None else num_support,
        )

    def leave(self) -> None:
        """End the current call."""
        self._calls.pop()

    @contextmanager
    def of(self, num_frames: int | None = None, num_support: int | None = None) -> Iterator[None]:
        """Set the layout inside the context, as between `enter` and `leave`."""
        self.enter(num_frames, num_support)
        try:
            yield
        finally:
            self.leave()

    def videos(self, tokens: Tensor, default_num_frames: int) -> Tensor:
        """Return the tokens ``(V*T, N, C)`` of all frames as ``(V, T, N, C)``.

        The default applies if the current call did not set a number of frames.
        """
        if not self._calls and torch._C._current_graph_task_id() != -1:
            raise DmgalError(
                "A backward pass recomputes a block, but the number of frames per video is no longer known.",
                received="a library's own gradient checkpointing, which recomputes a block with its hooks",
                expected="hooks outside the recomputed part, or a layout that is set during recomputation",
                remedy="Use FrameEncoder(..., checkpoint_blocks=True) instead of the library's checkpointing.",
            )
        frames = self.num_frames or default_num_frames
        if len(tokens) % frames:
            raise DmgalError(
                "The number of frames in a batch is not a multiple of the frames per video.",
                received=f"{len(tokens)} frames, {frames} frames a video",
                expected="a whole number of videos, one after the other",
                remedy="Pass num_frames=... with the call, or a 5-D input (videos, frames, 3, height, width).",
            )
        return rearrange(tokens, "(v t) n c -> v t n c", t=frames)
