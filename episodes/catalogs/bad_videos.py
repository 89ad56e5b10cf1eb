"""What happens where a video cannot be read while an episode or an evaluation is under way: an error, or a skip.

Skipping is deterministic: in an episode, the next video of the same class that is not in the episode takes the place,
so an episode is the same on any number of workers. Where every video is encoded once there is no such place: the video
is left out of the catalog instead. Each bad video is told when it is first met, with how many there are so far.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...backbones.video_state import VideoState
from ..catalog import VideoCatalog
from ..listing import printable
from ..video import VideoError

OnBadVideo = Literal["error", "skip"]
ReadClip = Callable[[int, int], Tensor]
"""From a place in the episode and a video to its clip."""


class BadVideos:
    """A catalog's videos that could not be read, known to all processes that load data, and what to do about them.

    Args:
        catalog: the videos.
        on_bad_video: "error" raises the reader's `VideoError`; "skip" goes on without the video.
    """

    def __init__(self, catalog: VideoCatalog, on_bad_video: OnBadVideo = "error") -> None:
        self.catalog = catalog
        self.on_bad_video = on_bad_video
        # one flag per video, which several processes may set at once; a shared counter would need a lock
        self._met = torch.zeros(len(catalog) if on_bad_video == "skip" else 0, dtype=torch.bool).share_memory_()
        self._of_class: dict[int, np.ndarray] = {}

    @property
    def met(self) -> list[int]:
        """The bad videos met so far by any process."""
        return self._met.nonzero().flatten().tolist()

    def clips(self, videos: Sequence[int], read: ReadClip) -> list[Tensor]:
        """The clips of an episode's videos; a video that is skipped is replaced by one that is not in the episode.

        Raises:
            VideoError: a video cannot be read, and is not to be skipped or no other of its class can be read.
        """
        taken = set(videos)
        return [self._clip(place, video, read, taken) for place, video in enumerate(videos)]

    def clip_or_none(self, video: int, read: Callable[[int], Tensor]) -> Tensor | None:
        """The clip of a video; None where it is skipped."""
        try:
            return read(video)
        except VideoError as error:
            if self.on_bad_video == "error":
                raise
            self._tell(video, error, "it is left out")
            return None

    def _clip(self, place: int, video: int, read: ReadClip, taken: set[int]) -> Tensor:
        try:
            return read(place, video)
        except VideoError as error:
            if self.on_bad_video == "error":
                raise
            self._tell(video, error, "others of its class take its place")
            first = error
        for other in self._others(video):
            if other in taken:
                continue
            try:
                clip = read(place, other)
            except VideoError as error:
                self._tell(other, error, "others of its class take its place")
                continue
            taken.add(other)
            return clip
        raise first

    def _others(self, video: int) -> Iterator[int]:
        """The other videos of a video's class, from the one behind it on."""
        label = int(self.catalog.labels[video])
        if label not in self._of_class:
            self._of_class[label] = np.flatnonzero(self.catalog.labels == label)
        videos = self._of_class[label]
        behind = int(np.searchsorted(videos, video)) + 1
        yield from np.concatenate([videos[behind:], videos[: behind - 1]]).tolist()

    def _tell(self, video: int, error: VideoError, instead: str) -> None:
        if self._met[video]:
            return
        self._met[video] = True
        reason = str(error).partition("received: ")[2].partition("\n")[0]
        path = printable(str(self.catalog.path(video)))
        tqdm.write(f"bad video {int(self._met.sum())}: {path}: {reason}; {instead}", file=sys.stderr)


def without_bad(catalog: VideoCatalog, states: VideoState, bad: Sequence[int]) -> tuple[VideoCatalog, VideoState]:
    """A catalog and the states of its videos, both less the bad ones.

    Raises:
        DmgalError: a class is left without a video.
    """
    if not bad:
        return catalog, states
    kept = np.setdiff1d(np.arange(len(catalog)), bad)
    return catalog.without([catalog.videos[video] for video in bad]), states.select(torch.from_numpy(kept))
