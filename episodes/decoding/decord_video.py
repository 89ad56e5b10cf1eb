"""The second decoder: decord, for comparison and for files whose frames it is known to get right.

It decodes to the end of a group of pictures wherever a read begins, and was measured to give wrong frames without a
word where groups are open (``bench/decode.py``). It has wheels for x86-64 only and no release since 2021.
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
from .packet_stream import PacketStream
from .upright import UprightRGB, quarter_turns
from .video_decoder import VideoError, check_indices, shown_reason, stack


class DecordVideo:
    """A video file. It stays open as long as this object lives.

    Args:
        path: the file.
        threads: how many threads the decoder may use.

    Raises:
        DmgalError: decord is not installed.
        VideoError: not a video, no frame in it, or too large.
    """

    damage: str | None = None

    @staticmethod
    def versions() -> dict[str, str]:
        """See `VideoDecoder`."""
        _decord()
        return {"decord": version("decord")}

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        with PacketStream(path, threads) as stream:  # what decord does not tell, and refusals it does not know
            self._aspect = stream.aspect
            if self._aspect and self._aspect != 1 and _turned_aside(stream):
                self._aspect = 1 / self._aspect  # of frames that decord has turned already
        decord = _decord()
        try:
            self._reader: Any = decord.VideoReader(str(path), num_threads=threads)
            self.num_frames = len(self._reader)
        except (decord.DECORDError, RuntimeError) as error:
            raise VideoError(path, _first_line(error)) from error
        if not self.num_frames:
            raise VideoError(path, "it holds no video frame")

    def read(self, indices: Sequence[int]) -> Tensor:
        """See `VideoDecoder`; here a wrong count is never noticed."""
        check_indices(indices, self.num_frames)
        convert = UprightRGB(self.path, self._aspect)
        places = sorted(set(indices))
        try:
            clip = self._reader.get_batch(places).asnumpy()  # (T, H, W, 3)
        except (_decord().DECORDError, RuntimeError) as error:
            raise VideoError(self.path, _first_line(error)) from error
        frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for image in clip)
        return stack(self.path, indices, {place: convert(frame) for place, frame in zip(places, frames, strict=True)})


Decoder = DecordVideo


def _turned_aside(stream: PacketStream) -> bool:
    """Whether the first frame lies on its side in the file."""
    with suppress(av.FFmpegError):
        for packet in stream.packets():
            for frame in stream.context.decode(packet):
                return quarter_turns(frame) % 2 == 1
        for frame in stream.context.decode(None):
            return quarter_turns(frame) % 2 == 1
    return False


def _decord() -> Any:
    try:
        import decord
    except ImportError as error:
        raise DmgalError(
            "cannot decode with decord",
            received=f"no module to import ({error})",
            expected="the package decord, which has wheels for x86-64 Linux and Windows only",
            remedy="pip install decord, or use the decoder pyav",
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _first_line(error: Exception) -> str:
    lines = shown_reason(error).strip().splitlines()
    return next((line.partition("] ")[2] or line for line in lines if line.strip()), "decord gave no reason")
