"""The content of a store: uncompressed fixed test clips, or all frames as JPEGs for training.

Each kind of content has a description, which lists all settings that determine the stored bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from xxhash import xxh3_64_intdigest

from ...errors import DmgalError
from ..decoding.base import OpenVideo, StaleFrameCountError
from ..decoding.clip import TestTransform, height_and_width, short_side_to, uniform_frames
from ..decoding.images import FrameImages
from ..decoding.pyav_video import PyAVVideo
from ..decoding.video import DecoderName, decoder_class, open_video, read_clip

VERSION = 3
"""Increment on every change of the stored format, the test transform or the choice of frames."""
BYTES_AT_ONCE = 2**28
"""Bytes of decoded frames in memory. Longer videos are decoded in several passes."""


Encoded = tuple[int, bytes, str]
"""A video's number of frames, their bytes, and the reason why the rest of it cannot be read, or an empty text."""


@dataclass(frozen=True)
class EvaluationClips:
    """Fixed test clips, uint8 ``(T, 3, *size)``, bit-identical to decoding and transforming the videos.

    Args:
        num_frames: ``T``; a clip consists of the middle frame of each of T equal segments.
        transform: applied after decoding.
        decoder: for video files.
    """

    num_frames: int
    transform: TestTransform
    decoder: DecoderName = "pyav"

    name: ClassVar[str] = "test"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of a clip."""
        return self.num_frames, 3, *height_and_width(self.transform.size)

    def description(self) -> dict[str, object]:
        """Return JSON-compatible names and values that identify this content."""
        resize = self.transform.resize or 1.0  # None means 1
        size = self.transform.size if isinstance(self.transform.size, int) else list(self.transform.size)
        frames = {"num_frames": self.num_frames, "size": size, "resize": resize}
        return {**frames, **_decoder_and_versions(self.decoder)}

    def encode(self, path: Path) -> Encoded:
        """Return the clip of a video, or raise a VideoError."""
        wanted = partial(uniform_frames, num_wanted=self.num_frames)
        clip = read_clip(path, wanted, self.num_frames, self.decoder)
        return self.num_frames, self.transform(clip).numpy().tobytes(), ""


@dataclass(frozen=True)
class TrainingFrames:
    """All frames of a video as JPEGs with a limited short side, which approximate the exact frames.

    Args:
        short_side: maximum short side in pixels. Larger frames are shrunk.
        quality: of the JPEGs, from 1 to 95.
        decoder: for video files.
    """

    short_side: int = 256
    quality: int = 90
    decoder: DecoderName = "pyav"

    name: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        if self.short_side < 1 or not 1 <= self.quality <= 95:
            raise DmgalError(
                "Training frames cannot be stored like this.",
                received=f"short_side={self.short_side}, quality={self.quality}",
                expected="a short side of at least 1 pixel, a quality from 1 to 95",
                remedy="Use the usual values 256 and 90.",
            )

    def description(self) -> dict[str, object]:
        """Return JSON-compatible names and values that identify this content."""
        return {"short_side": self.short_side, "quality": self.quality, **_decoder_and_versions(self.decoder)}

    def encode(self, path: Path) -> Encoded:
        """Return the JPEGs of a video before its first unreadable frame, or raise a VideoError if there are none."""
        images: list[bytes] = []
        video = open_video(path, self.decoder)
        for clip in _read_in_passes(video):
            frames = rearrange(short_side_to(clip, self.short_side), "t c h w -> t h w c").numpy()
            images += [self._encode_jpeg(frame) for frame in frames]
        return len(images), pack(images), video.damage or ""

    def _encode_jpeg(self, image: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "jpeg", quality=self.quality)
        return file.getvalue()


Content = EvaluationClips | TrainingFrames


def pack(images: Sequence[bytes]) -> bytes:
    """Return the table of the images' lengths and checksums, and the images."""
    table = np.array([(len(image), xxh3_64_intdigest(image)) for image in images], "<u8")
    return b"".join([table.tobytes(), *images])


def unpack(block: NDArray[np.uint8], count: int, wanted: Sequence[int]) -> Tensor | None:
    """Return the wanted ones of ``count`` images, uint8 ``(T, 3, H, W)``, or None if their bytes differ from before.

    Channels are last in memory, because resizing is fastest like that.
    """
    if len(block) < 16 * count:
        return None
    lengths, checksums = rearrange(block[: 16 * count].view("<u8"), "(frame column) -> column frame", column=2)
    ends = 16 * count + np.cumsum(lengths)
    images: dict[int, NDArray[np.uint8]] = {}
    for index in set(wanted):
        image = block[ends[index] - lengths[index] : ends[index]].tobytes()
        if xxh3_64_intdigest(image) != checksums[index]:
            return None
        try:
            images[index] = np.asarray(Image.open(io.BytesIO(image), formats=("JPEG",)))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # forged with a right checksum
            return None
    if len({image.shape for image in images.values()}) != 1 or images[wanted[0]].ndim != 3:
        return None
    return rearrange(torch.from_numpy(np.stack([images[index] for index in wanted])), "t h w c -> t c h w")


def _read_in_passes(video: OpenVideo) -> Iterator[Tensor]:
    """Yield all frames in order: the first one, and the others in as few passes as ``BYTES_AT_ONCE`` allows."""
    start, count = 0, 1
    while start < video.num_frames:
        try:
            clip = video.read(range(start, min(video.num_frames, start + count)))
        except StaleFrameCountError:
            continue  # with the new count
        yield clip
        start += len(clip)
        count = max(1, BYTES_AT_ONCE // clip[0].nbytes)


def _decoder_and_versions(decoder: DecoderName) -> dict[str, object]:
    """Return the decoder and the versions of all libraries that affect the frames, without torch's device suffix."""
    # For any decoder, PyAV turns frames upright and Pillow decodes single images.
    versions = {**FrameImages.versions(), **PyAVVideo.versions(), **decoder_class(decoder).versions()}
    return {
        "decoder": decoder,
        "store version": VERSION,
        "version of torch": version("torch").partition("+")[0],
        **{f"version of {name}": number for name, number in versions.items()},
    }
