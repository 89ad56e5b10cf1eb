"""Videos that a program holds already, read like files: arrays, tensors and open PyAV containers.

`as_video` checks what it is given and returns a path or an `OpenVideo`, which `read_clip` reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video import VideoStream
from einops import rearrange
from torch import Tensor

from ...errors import DmgalError
from ...files import printable
from .base import MAX_PIXELS, Image, OpenVideo, UprightRGB, VideoError, check_indices, shown_reason, stack
from .packets import frame_damage, preferred_stream

LEAST_FRAMES = 2
"""Number of frames below which nothing moves."""
EXPECTED = (
    "a path, a uint8 array (T, H, W, 3), a uint8 tensor (T, 3, H, W) or an open PyAV container, with at least "
    f"{LEAST_FRAMES} frames of at most {MAX_PIXELS:,} pixels"
)


class VideoInMemory(OpenVideo, Protocol):
    """An open video that no file of a known path holds."""

    def content_hash(self) -> int:
        """Return a 64-bit hash of the content."""
        ...


def as_video(clip: object) -> Path | VideoInMemory:
    """Return the video that a caller passes as a clip. Paths are not opened, containers are decoded once.

    Args:
        clip: a path, uint8 array ``(T, H, W, 3)``, uint8 tensor ``(T, 3, H, W)`` or an open PyAV container that can
            seek, all RGB.

    Raises:
        DmgalError: it is anything else, or has less than two frames.
    """
    if isinstance(clip, str | os.PathLike):
        return Path(clip)
    if isinstance(clip, InputContainer):
        return ContainerVideo(clip)
    if isinstance(clip, Tensor):
        _check_frames("a tensor", tuple(clip.shape), str(clip.dtype).removeprefix("torch."), channels=1)
        return FramesInMemory(clip.detach().cpu())
    if isinstance(clip, np.ndarray):
        _check_frames("an array", clip.shape, str(clip.dtype), channels=3)
        return FramesInMemory(torch.from_numpy(np.ascontiguousarray(rearrange(clip, "t h w c -> t c h w"))))
    remedy = "Stack the frames of a clip: numpy.stack(frames)." if isinstance(clip, list | tuple) else "Convert it."
    raise _refused(f"a {type(clip).__name__}", remedy)


def is_clip(value: object) -> bool:
    """Return True for what looks like a single clip, False for what looks like several, such as an array of paths."""
    if isinstance(value, Tensor):
        return value.ndim <= 4
    if isinstance(value, np.ndarray):
        return value.ndim <= 4 and value.dtype.kind in "biuf"
    return isinstance(value, str | os.PathLike | InputContainer)


class FramesInMemory:
    """A video of decoded frames, uint8 RGB ``(T, 3, H, W)``."""

    damage: str | None = None

    def __init__(self, frames: Tensor) -> None:
        self._frames = frames
        self.num_frames = len(frames)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index (see `OpenVideo`)."""
        check_indices(indices, self.num_frames)
        return self._frames[list(indices)].contiguous()

    def content_hash(self) -> int:
        """Return a 64-bit hash of the frames."""
        digest = blake2b(repr(tuple(self._frames.shape)).encode(), digest_size=8)
        for frame in self._frames:
            digest.update(frame.contiguous().numpy().data)
        return int.from_bytes(digest.digest(), "little")


class ContainerVideo:
    """The video stream of an open PyAV container, which the caller closes. It is decoded once per read.

    As in a file, damage ends the video.

    Raises:
        VideoError: the container is closed, cannot seek, has no video, or its frames are too large.
    """

    def __init__(self, container: InputContainer) -> None:
        self.damage: str | None = None
        self._container = container
        self._path = Path(str(container.name or "an open container"))
        digest = blake2b(digest_size=8)
        with _explained(self._path):
            stream = preferred_stream(container.streams.video)
            if stream is None:
                raise VideoError(self._path, "the container is closed, or has no video stream")
            self._stream = stream
            self.num_frames = sum(1 for _ in self._decode(digest))
        self._hash = int.from_bytes(digest.digest(), "little")
        if self.num_frames < LEAST_FRAMES:
            count = f"{self.num_frames} frame" + ("s" if self.num_frames != 1 else "")
            raise _refused(f"{printable(str(self._path))} with {count}", "Pass a video in which something moves.")

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index (see `OpenVideo`)."""
        check_indices(indices, self.num_frames)
        wanted, images, count = frozenset(indices), dict[int, Image](), 0
        convert = UprightRGB(self._path, self._stream.sample_aspect_ratio)
        with _explained(self._path):
            for frame in self._decode():
                if count in wanted:
                    images[count] = convert(frame)
                count += 1
        if count != self.num_frames:
            raise VideoError(self._path, f"decoding gave {self.num_frames} frames once and {count} the next time")
        return stack(self._path, indices, images)

    def content_hash(self) -> int:
        """Return a 64-bit hash of the packets."""
        return self._hash

    def _decode(self, digest: blake2b | None = None) -> Iterator[av.VideoFrame]:
        """Yield all frames from the start up to the end or the first damage, and add the packets to a digest."""
        self._container.seek(0)
        size = None
        for frame in self._frames(self._packets(digest)):
            size = size or (frame.width, frame.height)
            damage = frame_damage(frame, size)
            if damage is not None:
                self.damage = damage
                return
            yield frame

    def _packets(self, digest: blake2b | None) -> Iterator[av.Packet[VideoStream]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self.damage = f"its data is damaged: {shown_reason(error)}"
                return
            if packet is None or packet.is_corrupt:
                self.damage = None if packet is None else "its data is damaged: a packet is cut short"
                return
            if packet.size:
                if digest is not None:
                    digest.update(bytes(packet))
                yield packet

    def _frames(self, packets: Iterator[av.Packet[VideoStream]]) -> Iterator[av.VideoFrame]:
        context = self._stream.codec_context
        try:
            for packet in packets:
                yield from context.decode(packet)
            yield from context.decode(None)  # flushes the decoder
        except av.FFmpegError as error:
            self.damage = f"its data is damaged: {shown_reason(error)}"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Convert exceptions of PyAV about an open container into a `VideoError`."""
    try:
        yield
    except DmgalError:
        raise
    except (av.FFmpegError, OSError, ValueError, OverflowError, AssertionError, MemoryError) as error:
        raise VideoError(path, f"the container: {shown_reason(error)}") from error


def _check_frames(kind: str, shape: tuple[int, ...], dtype: str, channels: int) -> None:
    """Raise a DmgalError if this is not the shape and type of a clip. ``channels`` is the dimension of the colors."""
    remedy = _remedy(shape, dtype, channels)
    if remedy is not None:
        raise _refused(f"{kind} {shape} of type {dtype}", remedy)


def _remedy(shape: tuple[int, ...], dtype: str, channels: int) -> str | None:
    """Return what to change about frames that are not a clip, or None."""
    if dtype == "object":
        return "Stack frames of one size and of type uint8."
    if "float" in dtype:
        return "Floats have no known range: convert them, from 0 to 1 by (255 * clip).round(), and then to uint8."
    if dtype != "uint8":
        return "Convert it to uint8, with values from 0 to 255."
    if 0 in shape:
        return "Pass a clip with frames and pixels."
    if len(shape) == 3:
        return "This looks like one frame. Stack the frames of a clip."
    if len(shape) == 5:
        return "This looks like several clips. Pass them one by one, or to predict."
    if len(shape) == 4 and shape[channels] == 1:
        return "Repeat the gray channel three times."
    if len(shape) == 4 and shape[channels] != 3 and shape[4 - channels] == 3:
        return "Move the colors: " + ("clip.permute(0, 3, 1, 2)." if channels == 1 else "clip.transpose(0, 2, 3, 1).")
    if len(shape) != 4 or shape[channels] != 3:
        return "Pass RGB frames in this order of dimensions."
    if shape[0] < LEAST_FRAMES:
        return "Nothing moves in one frame. Pass more frames of the video."
    return None if shape[1] * shape[2] * shape[3] <= 3 * MAX_PIXELS else "Resize the frames."


def _refused(received: str, remedy: str) -> DmgalError:
    return DmgalError("This is not a clip.", received=received, expected=EXPECTED, remedy=remedy)
