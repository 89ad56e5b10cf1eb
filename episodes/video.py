"""Exact frames of one video: frame ``i`` is the ``i``-th that decoding from the start shows, in presentation order.

Files are decoded by PyAV, one thread each, in one pass that ends at the last wanted frame and converts only the wanted
ones. How many frames there are is taken from the packets, never from the header; where decoding contradicts the packets
(hidden or damaged frames, AVI without time stamps) the frames themselves are counted. Damage ends a video: what
decodes after it leans on frames that are lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video import VideoStream
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DmgalError
from .video_files import frame_files

ChooseFrames = Callable[[int], Sequence[int]]


class VideoError(DmgalError):
    """A video that cannot be read.

    Args:
        path: the file or folder.
        reason: what is wrong with it; left out, the first is the whole message (see ``DmgalError``).
    """

    def __init__(self, path: str | os.PathLike[str], reason: str | None = None) -> None:
        if reason is None:
            super().__init__(str(path))
            return
        super().__init__(
            f"cannot read the video {os.fspath(path)}",
            received=reason,
            expected="a video file that FFmpeg decodes, or a folder of jpg or png frames of one size",
            remedy="replace the video, or take it out of the data set's folders or split file",
        )


class StaleFrameCountError(VideoError):
    """Decoding showed fewer frames than were counted; ``num_frames`` is right now, so choose again."""


class VideoDecoder(Protocol):
    """An open video. ``damage`` is the reason why only its beginning can be used, or None."""

    num_frames: int
    damage: str | None

    def read(self, indices: Sequence[int]) -> Tensor:
        """Frames by index, in any order and with repeats, as uint8 RGB ``(T, 3, H, W)``.

        Raises:
            IndexError: an index outside ``[0, num_frames)``.
            StaleFrameCountError: ``num_frames`` has turned out too large and was corrected.
            VideoError: a frame cannot be read, or the frames differ in size.
        """
        ...


def open_video(path: str | os.PathLike[str]) -> VideoDecoder:
    """Open a video file or a folder of frames.

    Raises:
        VideoError: nothing there, not a video, or no frame in it.
    """
    path = Path(path)
    if not path.exists():
        raise VideoError(path, "no such file or folder")
    return FrameFolder(path) if path.is_dir() else PyAVVideo(path)


def read_clip(path: str | os.PathLike[str], choose: ChooseFrames, at_least: int = 1) -> Tensor:
    """The chosen frames of a video, uint8 ``(T, 3, H, W)``.

    Args:
        path: a video file or a folder of frames.
        choose: from the number of frames to the indices wanted; called again where the number proves wrong.
        at_least: a damaged video is used only where this many of its frames decode.

    Raises:
        VideoError: the video cannot be read.
    """
    video = open_video(path)
    try:
        clip = video.read(choose(video.num_frames))
    except StaleFrameCountError:
        clip = video.read(choose(video.num_frames))
    if video.damage is not None and video.num_frames < at_least:
        raise VideoError(path, f"only {video.num_frames} frames decode of {at_least} wanted; then {video.damage}")
    return clip


class FrameFolder:
    """A folder of jpg or png frames, in natural order of their names."""

    damage: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._files = frame_files(path)
        except OSError as error:
            raise VideoError(path, str(error.strerror)) from error
        self.num_frames = len(self._files)
        if not self._files:
            raise VideoError(path, "a folder without jpg or png files")

    def read(self, indices: Sequence[int]) -> Tensor:
        _check_indices(indices, self.num_frames)
        return _stack(self.path, indices, {index: self._image(self._files[index]) for index in set(indices)})

    def _image(self, name: str) -> NDArray[np.uint8]:
        try:
            with Image.open(self.path / name) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise VideoError(self.path, f"frame {name}: {error}") from error


class PyAVVideo:
    """A video file. No handle stays open between calls: each pass opens the file anew, exact for any format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self._expected_pts = self._packet_pts()
        self.num_frames = len(self._expected_pts) if self._expected_pts else self._count_by_decoding()

    def read(self, indices: Sequence[int]) -> Tensor:
        _check_indices(indices, self.num_frames)
        wanted = self._wanted(frozenset(indices))
        if wanted is None:
            counted, self._expected_pts = self.num_frames, None
            self.num_frames = self._count_by_decoding()
            if self.num_frames != counted:
                raise StaleFrameCountError(
                    self.path, f"{self.num_frames} frames decode, not {counted} as its packets say"
                )
            wanted = self._wanted(frozenset(indices))
        if wanted is None:
            raise VideoError(self.path, f"decoding gave {self.num_frames} frames once and fewer the next time")
        return _stack(self.path, indices, wanted)

    def _wanted(self, indices: frozenset[int]) -> dict[int, NDArray[np.uint8]] | None:
        """The wanted frames by index; None where decoding contradicts what was expected."""
        reformatter = VideoReformatter()
        images: dict[int, NDArray[np.uint8]] = {}
        last = max(indices, default=-1)
        with closing(self._decoded()) as frames:
            for index, frame in enumerate(frames):
                if index > last:
                    break
                if self._expected_pts and frame.pts != self._expected_pts[index]:
                    return None
                if index in indices:
                    images[index] = _upright_rgb(frame, reformatter)
                if index == last:
                    break
        return images if len(images) == len(indices) else None

    def _packet_pts(self) -> list[int] | None:
        """Presentation times of all packets, sorted, found without decoding; None where they cannot be trusted."""
        with closing(self._packets()) as packets:
            # a discarded packet lies outside the file's edit list: decoded for others' sake, never shown
            times = [packet.pts for packet in packets if packet.size and not packet.is_discard]
        known = [time for time in times if time is not None]
        return sorted(known) if len(set(known)) == len(times) else None

    def _count_by_decoding(self) -> int:
        with closing(self._decoded()) as frames:
            count = sum(1 for _ in frames)
        if not count:
            raise VideoError(self.path, self.damage or "it holds no video frame")
        return count

    def _decoded(self) -> Generator[av.VideoFrame]:
        """Frames in presentation order, up to the end or the first damage."""
        with closing(self._packets()) as packets:
            for packet in packets:
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    self.damage = f"its data is damaged: {error.strerror}"
                    return
                yield from frames

    def _packets(self) -> Generator[av.Packet[VideoStream]]:
        """Packets in decoding order; the last is empty and makes the decoder give what it holds back."""
        with self._opened() as container:
            if not container.streams.video:
                raise VideoError(self.path, "it has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            try:
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        self.damage = "its data is damaged: a packet is cut short"
                        return
                    yield packet
            except av.FFmpegError as error:
                self.damage = f"its data is damaged: {error.strerror}"

    def _opened(self) -> InputContainer:
        try:
            # "file:" keeps FFmpeg from taking a name with a colon for a protocol
            return av.open(f"file:{self.path}", metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise VideoError(self.path, str(error.strerror)) from error


def _upright_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.rot90(image, round(frame.rotation / 90))  # both count counterclockwise


def _stack(path: Path, indices: Sequence[int], images: dict[int, NDArray[np.uint8]]) -> Tensor:
    sizes = sorted({image.shape[:2] for image in images.values()})
    if len(sizes) > 1:
        raise VideoError(path, f"its frames differ in size (height, width): {', '.join(map(str, sizes))}")
    clip = torch.from_numpy(np.stack([images[index] for index in indices]))  # (T, H, W, 3)
    return clip.permute(0, 3, 1, 2).contiguous()  # (T, 3, H, W)


def _check_indices(indices: Sequence[int], num_frames: int) -> None:
    if not indices:
        raise IndexError("no frame index was given")
    if min(indices) < 0 or max(indices) >= num_frames:
        raise IndexError(f"frame indices {min(indices)} to {max(indices)} of a video of {num_frames} frames")
