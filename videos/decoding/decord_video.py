"""The alternative decoder decord, for comparison and for files that it is known to decode correctly.

It decodes to the end of a group of pictures wherever a read begins. In measurements (``bench/decode.py``) it silently
returned wrong frames for open groups. It has wheels for x86-64 only and no release since 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor

from ...errors import DmgalError
from .base import UprightRGB, VideoError, check_indices, quarter_turns, shown_reason, stack
from .packets import PacketStream


class DecordVideo:
    """A video file, which stays open as long as this object exists.

    Args:
        path: the file.
        threads: maximum number of threads of the decoder.

    Raises:
        DmgalError: decord is not installed.
        VideoError: the file is not a video, has no frames, or its frames are too large.
    """

    damage: str | None = None

    @staticmethod
    def versions() -> dict[str, str]:
        """Return the version of decord (see `VideoDecoder`)."""
        _import_decord()
        return {"decord": version("decord")}

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        with PacketStream(path, threads) as stream:  # decord reports neither aspect ratios nor these errors
            self._aspect = stream.aspect
            if self._aspect and self._aspect != 1 and _is_rotated_sideways(stream):
                self._aspect = 1 / self._aspect  # decord returns rotated frames
        decord = _import_decord()
        try:
            self._reader: Any = decord.VideoReader(str(path), num_threads=threads)
            self.num_frames = len(self._reader)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(path, _reason(error)) from error
        if not self.num_frames:
            raise VideoError(path, "it holds no video frame")

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return frames by index (see `VideoDecoder`). A wrong frame count is never detected here."""
        check_indices(indices, self.num_frames)
        convert = UprightRGB(self.path, self._aspect)
        frame_indices = sorted(set(indices))
        try:
            clip = self._reader.get_batch(frame_indices).asnumpy()
        except (_import_decord().DECORDError, RuntimeError) as error:
            raise VideoError(self.path, _reason(error)) from error
        frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for image in clip)
        images = {index: convert(frame) for index, frame in zip(frame_indices, frames, strict=True)}
        return stack(self.path, indices, images)


Decoder = DecordVideo


def _is_rotated_sideways(stream: PacketStream) -> bool:
    """Return True if the first frame is stored rotated by 90 or 270 degrees."""
    with suppress(av.FFmpegError):
        for packet in stream.packets():
            for frame in stream.context.decode(packet):
                return quarter_turns(frame) % 2 == 1
        for frame in stream.context.decode(None):
            return quarter_turns(frame) % 2 == 1
    return False


def _import_decord() -> Any:
    try:
        import decord
    except ImportError as error:
        raise DmgalError(
            "Cannot decode with decord.",
            received=f"no module to import ({error})",
            expected="the package decord, which has wheels for x86-64 Linux and Windows only",
            remedy="Run pip install decord, or use the decoder pyav.",
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _reason(error: Exception) -> str:
    lines = shown_reason(error).strip().splitlines()
    return next((line.partition("] ")[2] or line for line in lines if line.strip()), "decord gave no reason")
