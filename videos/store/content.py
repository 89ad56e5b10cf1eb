"""The content of a store: uncompressed fixed test clips, or all frames as JPEGs for training, and the key of each.

The key lists all settings that determine the content, as JSON. For a video that cannot be read, the reason is stored,
so that reading from the store fails with the same message.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...errors import DmgalError
from ...files import atomic_write, listed
from ..decoding.base import StaleFrameCountError, VideoDecoder, VideoError
from ..decoding.clip import TestTransform, short_side_to, uniform_frames
from ..decoding.images import FrameImages
from ..decoding.pyav_video import PyAVVideo
from ..decoding.video import DecoderName, decoder_class, open_video, read_clip

VERSION = 2
"""Increment on every change of the stored format, the checksums, the test transform or the choice of frames."""
BYTES_AT_ONCE = 2**28
"""Bytes of decoded frames in memory. Longer videos are decoded in several passes."""


class Content(Protocol):
    """Kind of data stored for each video, with all settings that determine it."""

    name: ClassVar[str]

    def description(self) -> dict[str, Any]:
        """Return JSON-compatible names and values that identify this kind of content."""
        ...

    def encode(self, path: Path) -> tuple[int, bytes]:
        """Return the number of frames and their bytes, or 0 and a UTF-8 reason if the video cannot be read."""
        ...


@dataclass(frozen=True)
class EvaluationClips:
    """Fixed test clips, uint8 ``(T, 3, size, size)``, bit-identical to decoding and transforming the videos.

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
        return self.num_frames, 3, self.transform.size, self.transform.size

    def description(self) -> dict[str, Any]:
        """Return the identifying names and values (see `Content`)."""
        resize = self.transform.resize or 1.0  # None means 1
        return {
            "num_frames": self.num_frames,
            "size": self.transform.size,
            "resize": resize,
            **_decoder_and_versions(self.decoder),
        }

    def encode(self, path: Path) -> tuple[int, bytes]:
        """Return the clip of a video (see `Content`)."""
        try:
            wanted = partial(uniform_frames, num_wanted=self.num_frames)
            clip = read_clip(path, wanted, self.num_frames, self.decoder)
        except VideoError as error:
            return 0, _encode_reason(error)
        return self.num_frames, self.transform(clip).numpy().tobytes()


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

    def description(self) -> dict[str, Any]:
        """Return the identifying names and values (see `Content`)."""
        return {"short_side": self.short_side, "quality": self.quality, **_decoder_and_versions(self.decoder)}

    def encode(self, path: Path) -> tuple[int, bytes]:
        """Return the JPEGs of a video (see `Content`), followed by the reason if it is damaged."""
        images: list[bytes] = []
        try:
            video = open_video(path, self.decoder)
            for clip in _read_in_passes(video):
                frames = rearrange(short_side_to(clip, self.short_side), "t c h w -> t h w c").numpy()
                images += [self._encode_jpeg(frame) for frame in frames]
        except VideoError as error:
            return 0, _encode_reason(error)
        damage = (video.damage or "").encode("utf-8", "replace")
        return len(images), pack(images) + damage

    def _encode_jpeg(self, image: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, "jpeg", quality=self.quality)
        return file.getvalue()


class DamagedBlockError(Exception):
    """A block whose bytes differ from what was written."""


def pack(images: Sequence[bytes]) -> bytes:
    """Return the CRC-32 of a table, the table of the images' lengths and CRC-32s, and the images."""
    table = np.array([(len(image), zlib.crc32(image)) for image in images], "<u4").tobytes()
    return b"".join([zlib.crc32(table).to_bytes(4, "little"), table, *images])


def unpack(block: NDArray[np.uint8], count: int, wanted: Sequence[int]) -> Tensor:
    """Return the wanted ones of ``count`` images, uint8 ``(T, 3, H, W)``.

    Channels are last in memory, because resizing is fastest like that.

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
    clip = torch.from_numpy(np.stack([images[index] for index in wanted]))
    return rearrange(clip, "t h w c -> t c h w")


def damage(block: NDArray[np.uint8], count: int) -> str | None:
    """Return the reason why only the beginning of a video was stored, or None.

    Raises:
        DamagedBlockError: the bytes differ from those packed.
    """
    lengths, _, starts = _table(block, count)
    return block[starts[-1] + lengths[-1] :].tobytes().decode("utf-8", "replace") or None


def _table(block: NDArray[np.uint8], count: int) -> tuple[list[int], list[int], list[int]]:
    """Return the lengths, checksums and offsets of the images."""
    end = 4 + 8 * count
    table = block[4:end].tobytes()
    if zlib.crc32(table).to_bytes(4, "little") != block[:4].tobytes():
        raise DamagedBlockError("its table of frames differs from its checksum")
    lengths, checksums = rearrange(np.frombuffer(table, "<u4"), "(frame column) -> column frame", column=2)
    lengths = lengths.astype(np.int64)
    offsets = end + np.cumsum(lengths) - lengths
    return lengths.tolist(), checksums.tolist(), offsets.tolist()


def _read_in_passes(video: VideoDecoder) -> Iterator[Tensor]:
    """Yield all frames in order, in as few passes as ``BYTES_AT_ONCE`` allows."""
    start = 0
    step = max(1, BYTES_AT_ONCE // _read_range(video, 0, 1).nbytes)
    while start < video.num_frames:
        clip = _read_range(video, start, step)
        yield clip
        start += len(clip)


def _read_range(video: VideoDecoder, start: int, count: int) -> Tensor:
    """Return up to ``count`` frames from ``start``, or no frames if the video proves to end before it."""
    while indices := range(start, min(video.num_frames, start + count)):
        try:
            return video.read(indices)
        except StaleFrameCountError:
            continue
    return torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _encode_reason(error: VideoError) -> bytes:
    """Return the reason of an error as UTF-8."""
    return (error.received or "").encode("utf-8", "replace")


def _decoder_and_versions(decoder: DecoderName) -> dict[str, Any]:
    """Return the decoder and the versions of all libraries that affect the frames, without torch's device suffix."""
    # For any decoder, PyAV turns frames upright and Pillow decodes single images.
    versions = {**FrameImages.versions(), **PyAVVideo.versions(), **decoder_class(decoder).versions()}
    return {
        "decoder": decoder,
        "store version": VERSION,
        "version of torch": version("torch").partition("+")[0],
        **{f"version of {name}": number for name, number in versions.items()},
    }


KEY = "key.json"
REMEDY = "Build it: run dmgal store with the options of this run. Only missing or changed videos are decoded."


def claim(part: Path, description: dict[str, Any]) -> None:
    """Write the key of an empty part, or raise DmgalError if the part has other content."""
    if (part / KEY).exists():
        refuse_other(part, read_key(part), description)
        return
    foreign_files = sorted(path.name for path in part.iterdir() if not path.name.startswith("."))
    if foreign_files:
        received = f"{listed(foreign_files)}, but no {KEY}"
        refuse(f"Cannot build a store in {part}.", received, "an empty folder", "Choose an empty folder.")
    with atomic_write(part / KEY) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(description, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_key(part: Path) -> dict[str, Any]:
    """Return the key of a part, or an empty one if it cannot be read.

    Raises:
        DmgalError: there is no store.
    """
    try:
        key = json.loads((part / KEY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(f"There is no store in {part}.", f"no {KEY}", "a folder created by dmgal store", REMEDY)
    except ValueError:
        key = None
    return key if isinstance(key, dict) else {}


def refuse_other(part: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a DmgalError that names all differences, if there are any."""
    other = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    if other:
        refuse(
            f"The store {part} holds something else.",
            ", ".join(f"{name}={stored.get(name)!r}" for name in other),
            ", ".join(f"{name}={wanted.get(name)!r}" for name in other),
            "Use the options of this store, choose another folder, or delete this store and build it again.",
        )


def refuse(problem: str, received: str, expected: str, remedy: str) -> NoReturn:
    """Raise a DmgalError with these four parts."""
    raise DmgalError(problem, received=received, expected=expected, remedy=remedy)
