"""What a store keeps of a video: the fixed test clip as it is, or all frames as JPEGs for training.

A video that cannot be read is kept too, by its reason, so that reading it from the store fails as reading it does.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...errors import DmgalError
from ..decoding.frame_images import FrameImages
from ..decoding.pyav_video import PyAVVideo
from ..frames import uniform_frames
from ..transforms import TestTransform, short_side_to
from ..video import DecoderName, StaleFrameCountError, VideoDecoder, VideoError, decoder_class, open_video, read_clip

VERSION = 2
"""Goes up with every change of what is stored, of its checksums, of the test transform, or of the choice of frames."""
BYTES_AT_ONCE = 2**28
"""Of decoded frames: longer videos are decoded in several passes, so that memory stays bounded."""


class Content(Protocol):
    """What is kept of each video, and everything but the video that shapes it."""

    name: ClassVar[str]

    def description(self) -> dict[str, Any]:
        """Names and values, as JSON keeps them, that tell this content from any other."""
        ...

    def encode(self, path: Path) -> tuple[int, bytes]:
        """How many frames, and their bytes; 0 and a reason in UTF-8 where the video cannot be read."""
        ...


@dataclass(frozen=True)
class EvaluationClips:
    """The fixed test clip ``(T, 3, size, size)`` uint8 of every video, byte for byte as decoding and transform give it.

    Args:
        num_frames: ``T``; the middle frame of each of T equal segments.
        transform: what follows decoding.
        decoder: what decodes video files.
    """

    num_frames: int
    transform: TestTransform
    decoder: DecoderName = "pyav"

    name: ClassVar[str] = "test"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a clip."""
        return self.num_frames, 3, self.transform.size, self.transform.size

    def description(self) -> dict[str, Any]:
        resize = self.transform.resize or 1.0  # None means 1
        return {
            "num_frames": self.num_frames,
            "size": self.transform.size,
            "resize": resize,
            **_surroundings(self.decoder),
        }

    def encode(self, path: Path) -> tuple[int, bytes]:
        try:
            wanted = partial(uniform_frames, num_wanted=self.num_frames)
            clip = read_clip(path, wanted, self.num_frames, self.decoder)
        except VideoError as error:
            return 0, _reason(error)
        return self.num_frames, self.transform(clip).numpy().tobytes()


@dataclass(frozen=True)
class TrainingFrames:
    """Every frame of a video as a JPEG, its short side shrunk where it is longer: not the exact frames, but close.

    Args:
        short_side: at most, pixels.
        quality: of the JPEGs, from 1 to 95.
        decoder: what decodes video files.
    """

    short_side: int = 256
    quality: int = 90
    decoder: DecoderName = "pyav"

    name: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        if self.short_side < 1 or not 1 <= self.quality <= 95:
            raise DmgalError(
                "training frames cannot be stored like this",
                received=f"short_side={self.short_side}, quality={self.quality}",
                expected="a short side of at least 1 pixel, a quality from 1 to 95",
                remedy="256 and 90 are usual",
            )

    def description(self) -> dict[str, Any]:
        return {"short_side": self.short_side, "quality": self.quality, **_surroundings(self.decoder)}

    def encode(self, path: Path) -> tuple[int, bytes]:
        images: list[bytes] = []
        try:
            video = open_video(path, self.decoder)
            for clip in _passes(video):
                images += map(self._jpeg, short_side_to(clip, self.short_side).permute(0, 2, 3, 1).numpy())
        except VideoError as error:
            return 0, _reason(error)
        damage = (video.damage or "").encode("utf-8", "replace")
        return len(images), pack(images) + damage

    def _jpeg(self, image: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "jpeg", quality=self.quality)
        return file.getvalue()


class DamagedBlockError(Exception):
    """A block is not what was written."""


def pack(images: Sequence[bytes]) -> bytes:
    """A table of every image's length and CRC-32, preceded by a CRC-32 of its own, and the images."""
    table = np.array([(len(image), zlib.crc32(image)) for image in images], "<u4").tobytes()
    return b"".join([zlib.crc32(table).to_bytes(4, "little"), table, *images])


def unpack(block: NDArray[np.uint8], count: int, wanted: Sequence[int]) -> Tensor:
    """The wanted of ``count`` images, uint8 ``(T, 3, H, W)``, channels last in memory: so resizing is fastest.

    Raises:
        DamagedBlockError: the bytes differ from those packed.
    """
    lengths, sums, starts = _table(block, count)
    images: dict[int, NDArray[np.uint8]] = {}
    for index in set(wanted):
        content = block[starts[index] : starts[index] + lengths[index]].tobytes()
        if zlib.crc32(content) != sums[index]:
            raise DamagedBlockError(f"frame {index} differs from its checksum")
        images[index] = np.asarray(Image.open(io.BytesIO(content)))
    clip = torch.from_numpy(np.stack([images[index] for index in wanted]))  # (T, H, W, 3)
    return clip.permute(0, 3, 1, 2)  # (T, 3, H, W)


def damage(block: NDArray[np.uint8], count: int) -> str | None:
    """Why only the beginning of a video was stored, or None.

    Raises:
        DamagedBlockError: the bytes differ from those packed.
    """
    lengths, _, starts = _table(block, count)
    return block[starts[-1] + lengths[-1] :].tobytes().decode("utf-8", "replace") or None


def _table(block: NDArray[np.uint8], count: int) -> tuple[list[int], list[int], list[int]]:
    """Lengths, checksums and places of the images."""
    end = 4 + 8 * count
    table = block[4:end].tobytes()
    if zlib.crc32(table).to_bytes(4, "little") != block[:4].tobytes():
        raise DamagedBlockError("its table of frames differs from its checksum")
    columns = np.frombuffer(table, "<u4").reshape(count, 2).T  # (2, frames)
    lengths = columns[0].astype(np.int64)
    return lengths.tolist(), columns[1].tolist(), (end + np.cumsum(lengths) - lengths).tolist()


def _passes(video: VideoDecoder) -> Iterator[Tensor]:
    """All frames in order, in as few passes as the bound on memory allows."""
    start, step = 0, max(1, BYTES_AT_ONCE // _read(video, 0, 1).nbytes)
    while start < video.num_frames:
        clip = _read(video, start, step)
        yield clip
        start += len(clip)


def _read(video: VideoDecoder, start: int, count: int) -> Tensor:
    """Up to ``count`` frames from ``start``; none where the video turns out to end before."""
    while indices := range(start, min(video.num_frames, start + count)):
        try:
            return video.read(indices)
        except StaleFrameCountError:
            continue
    return torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _reason(error: VideoError) -> bytes:
    """What was wrong with a video, out of the message in four parts."""
    return str(error).partition("\n  received: ")[2].partition("\n  expected: ")[0].encode("utf-8", "replace")


def _surroundings(decoder: DecoderName) -> dict[str, Any]:
    """The decoder, and versions of all that turns a file into frames; torch's are alike for every kind of device."""
    # PyAV turns what other decoders give upright, and frames in folders are Pillow's whatever the decoder
    versions = {**FrameImages.versions(), **PyAVVideo.versions(), **decoder_class(decoder).versions()}
    return {
        "decoder": decoder,
        "store version": VERSION,
        "version of torch": version("torch").partition("+")[0],
        **{f"version of {name}": number for name, number in versions.items()},
    }
