"""Handling of videos that cannot be read during an episode or an evaluation: raise an error, or skip the video.

Skipping is deterministic. In an episode, the next video of the same class that is not in the episode replaces the bad
one, so the episode does not depend on the number of workers. If every video is encoded once, the bad video is removed
from the catalog instead. Each bad video is logged when it is first met, with the number of bad videos so far.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..files import printable
from .catalog.catalog import VideoCatalog
from .decoding.base import VideoError

OnBadVideo = Literal["error", "skip"]


class _Selectable(Protocol):
    """States of videos."""

    def select(self, videos: Tensor, /) -> Self: ...


States = TypeVar("States", bound=_Selectable)
ReadClip = Callable[[int, int], Tensor]
"""A function that returns the clip of a video, given its position in the episode and the video."""


class BadVideos:
    """The unreadable videos of a catalog, shared by all processes that load data, and how to handle them.

    Args:
        catalog: the videos.
        on_bad_video: "error" raises the reader's `VideoError`; "skip" continues without the video.
    """

    def __init__(self, catalog: VideoCatalog, on_bad_video: OnBadVideo = "error") -> None:
        self.catalog = catalog
        self.on_bad_video = on_bad_video
        # Several processes may set flags at once; a shared counter would need a lock.
        self._is_bad = torch.zeros(len(catalog) if on_bad_video == "skip" else 0, dtype=torch.bool).share_memory_()
        self._videos_of_class: dict[int, np.ndarray] = {}

    @property
    def met(self) -> list[int]:
        """The bad videos met so far by any process."""
        return self._is_bad.nonzero().flatten().tolist()

    def clips(self, videos: Sequence[int], read: ReadClip) -> list[Tensor]:
        """Return the clips of an episode's videos. A skipped video is replaced by one that is not in the episode.

        Raises:
            VideoError: a video cannot be read, and either ``on_bad_video`` is "error" or no other video of its class
                can be read.
        """
        used, groups = set(videos), self.catalog.groups
        of_episode = set() if groups is None else {groups[video] for video in videos}

        def may_replace(video: int, other: int) -> bool:
            is_of_other_side = groups is not None and groups[other] != groups[video] and groups[other] in of_episode
            return other not in used and not is_of_other_side

        return [
            self._read_or_replace(position, video, read, used, may_replace) for position, video in enumerate(videos)
        ]

    def clip_or_none(self, video: int, read: Callable[[int], Tensor]) -> Tensor | None:
        """Return the clip of a video, or None if the video is skipped."""
        try:
            return read(video)
        except VideoError as error:
            if self.on_bad_video == "error":
                raise
            self._log(video, error, "it is left out")
            return None

    def _read_or_replace(
        self, position: int, video: int, read: ReadClip, used: set[int], may_replace: Callable[[int, int], bool]
    ) -> Tensor:
        """Return the clip of the video or of its replacement. A replacement is added to ``used``.

        With groups, a replacement is of the same group or of one that the episode does not have, so that support and
        query never share one.
        """
        try:
            return read(position, video)
        except VideoError as error:
            if self.on_bad_video == "error":
                raise
            self._log(video, error, "others of its class take its place")
            first_error = error
        for other in self._others_of_class(video):
            if not may_replace(video, other):
                continue
            try:
                clip = read(position, other)
            except VideoError as error:
                self._log(other, error, "others of its class take its place")
                continue
            used.add(other)
            return clip
        raise first_error

    def _others_of_class(self, video: int) -> Iterator[int]:
        """Yield the other videos of the class in catalog order, starting after the video and wrapping around."""
        label = int(self.catalog.labels[video])
        if label not in self._videos_of_class:
            self._videos_of_class[label] = np.flatnonzero(self.catalog.labels == label)
        videos = self._videos_of_class[label]
        after = int(np.searchsorted(videos, video)) + 1
        yield from np.concatenate([videos[after:], videos[: after - 1]]).tolist()

    def _log(self, video: int, error: VideoError, consequence: str) -> None:
        if self._is_bad[video]:
            return
        self._is_bad[video] = True
        reason = (error.received or "").partition("\n")[0]
        path = printable(str(self.catalog.path(video)))
        logging.getLogger(__name__).warning(f"bad video {int(self._is_bad.sum())}: {path}: {reason}; {consequence}")


def without_bad(catalog: VideoCatalog, states: States, bad: Sequence[int]) -> tuple[VideoCatalog, States]:
    """Return the catalog and the states of its videos without the bad videos.

    Raises:
        DmgalError: a class is left without a video.
    """
    if not bad:
        return catalog, states
    readable = np.setdiff1d(np.arange(len(catalog)), bad)
    return catalog.without([catalog.videos[video] for video in bad]), states.select(torch.from_numpy(readable))
