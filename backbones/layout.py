"""How a flat batch of frames divides into videos, and which of the videos are the support: told anew at every call.

A backbone sees ``(V*T, ...)`` frames and knows nothing of videos. What stands after its blocks (adapters) has to; it
reads the division here. A layout is in force only while a call runs and is never remembered, so a stale number of
frames or support videos cannot spoil a later call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import DmgalError


class Layout:
    """The division in force, shared by everything that was added to one backbone."""

    def __init__(self) -> None:
        self._calls: list[tuple[int | None, int | None]] = []

    @property
    def num_support(self) -> int | None:
        return self._calls[-1][1] if self._calls else None

    @property
    def num_frames(self) -> int | None:
        return self._calls[-1][0] if self._calls else None

    def enter(self, num_frames: int | None = None, num_support: int | None = None) -> None:
        """Begins a call; what it does not say holds on from the call around it."""
        outer_frames, outer_support = self._calls[-1] if self._calls else (None, None)
        self._calls.append(
            (outer_frames if num_frames is None else num_frames, outer_support if num_support is None else num_support)
        )

    def tell(self, num_frames: int | None, num_support: int | None) -> None:
        """Of the call that runs: what was not known when it began."""
        frames, support = self._calls[-1]
        self._calls[-1] = (
            frames if num_frames is None else num_frames,
            support if num_support is None else num_support,
        )

    def leave(self) -> None:
        self._calls.pop()

    @contextmanager
    def of(self, num_frames: int | None = None, num_support: int | None = None) -> Iterator[None]:
        self.enter(num_frames, num_support)
        try:
            yield
        finally:
            self.leave()

    def videos(self, tokens: Tensor, default_num_frames: int) -> Tensor:
        """Tokens of all frames ``(V*T, N, C)`` as ``(V, T, N, C)``; the default holds where the call told no number."""
        if not self._calls and torch._C._current_graph_task_id() != -1:
            raise DmgalError(
                "A backward pass computes a block again, and nothing tells any more how its frames divide into videos.",
                received="a block that a library's own gradient checkpointing runs with its hooks",
                expected="hooks outside of what is computed again, or a division that is told with it",
                remedy="use FrameEncoder(..., checkpoint_blocks=True) instead of the library's checkpointing",
            )
        frames = self.num_frames or default_num_frames
        if len(tokens) % frames:
            raise DmgalError(
                "A batch of frames does not divide into videos.",
                received=f"{len(tokens)} frames, {frames} frames a video",
                expected="a whole number of videos, one after the other",
                remedy="pass num_frames=... with the call, or a 5-D input (videos, frames, 3, height, width)",
            )
        return tokens.unflatten(0, (-1, frames))  # (V, T, N, C)
