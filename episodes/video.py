"""Exact frames of one video: frame ``i`` is the ``i``-th that decoding from the start shows, in presentation order.

A video is a file that FFmpeg decodes, a folder of jpg or png frames, or a zip file of such frames. Decoders stand
behind one protocol, `VideoDecoder`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from ..errors import DmgalError
from .decoding.frame_images import FrameFolder, FrameZip
from .decoding.pyav_video import PyAVVideo
from .decoding.video_decoder import (
    MAX_PIXELS,
    StaleFrameCountError,
    VideoDecoder,
    VideoError,
    VideoProbe,
    shown_reason,
)

__all__ = [
    "MAX_PIXELS",
    "ChooseFrames",
    "DecoderName",
    "StaleFrameCountError",
    "VideoDecoder",
    "VideoError",
    "VideoProbe",
    "decoder_class",
    "open_video",
    "probe_video",
    "read_clip",
]

ChooseFrames = Callable[[int], Sequence[int]]
DecoderName = Literal["pyav", "decord"]
"""Each is the file ``decoding/NAME_video.py``, which says what its ``Decoder`` is."""


def open_video(path: str | os.PathLike[str], decoder: DecoderName = "pyav", threads: int = 1) -> VideoDecoder:
    """Open a video file, a folder of frames, or a zip file of frames.

    Args:
        path: where it lies.
        decoder: what reads files: ``pyav``, exact, or ``decord`` (see ``decord_video``).
        threads: how many threads the decoder of a file may use; it never starts more.

    Raises:
        DmgalError: an unknown decoder, or fewer than one thread.
        VideoError: nothing there, not a video, no frame in it, or frames of more than ``MAX_PIXELS`` pixels.
    """
    _check_options(decoder, threads)
    path = Path(path)
    images = _frame_images(path)
    if images is not None:
        return images
    opened: VideoDecoder = decoder_class(decoder)(path, threads)
    return opened


def decoder_class(decoder: DecoderName) -> Any:
    """The class of `VideoDecoder`'s form that a decoder's file names."""
    return import_module(f".decoding.{decoder}_video", __package__).Decoder


def read_clip(
    path: str | os.PathLike[str],
    choose: ChooseFrames,
    at_least: int = 1,
    decoder: DecoderName = "pyav",
    threads: int = 1,
) -> Tensor:
    """The chosen frames of a video, uint8 ``(T, 3, H, W)``, upright, pixels square.

    Args:
        path: a video file, a folder of frames, or a zip file of frames.
        choose: from the number of frames to the indices wanted; called again where the number proves wrong.
        at_least: a damaged video is used only where this many of its frames decode.
        decoder: as for `open_video`.
        threads: as for `open_video`.

    Raises:
        VideoError: the video cannot be read.
    """
    video = open_video(path, decoder, threads)
    while True:
        if video.damage is not None and video.num_frames < at_least:
            reason = f"only {video.num_frames} frames decode of {at_least} wanted; then {video.damage}"
            raise VideoError(path, reason)
        try:
            return video.read(choose(video.num_frames))
        except StaleFrameCountError:
            continue


def probe_video(path: str | os.PathLike[str]) -> VideoProbe:
    """Decode all of a video, with PyAV and one thread, to find out what can be used of it.

    Args:
        path: a video file, a folder of frames, or a zip file of frames.

    Raises:
        VideoError: nothing of it can be used; the reason is in its message.
    """
    path = Path(path)
    return (_frame_images(path) or PyAVVideo(path)).probe()


def _frame_images(path: Path) -> FrameFolder | FrameZip | None:
    """The reader of a folder or zip file of frames; None for another file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise VideoError(path, "no such file or folder") from error
    except (OSError, ValueError) as error:
        raise VideoError(path, shown_reason(error)) from error
    if stat.S_ISDIR(mode):
        return FrameFolder(path)
    if not stat.S_ISREG(mode):
        raise VideoError(path, "neither a file nor a folder")
    return FrameZip(path) if path.suffix.lower() == ".zip" else None


def _check_options(decoder: str, threads: int) -> None:
    known = get_args(DecoderName)
    if decoder in known and threads >= 1:
        return
    raise DmgalError(
        "cannot open a video",
        received=f"decoder={decoder!r}, threads={threads!r}",
        expected=f"a decoder among {', '.join(known)}, and at least 1 thread",
        remedy="correct the decoder's name or the number of threads",
    )
