"""Exact frames of one video: frame ``i`` is the ``i``-th frame in presentation order when decoding from the start.

A video is a file that FFmpeg decodes, a folder of jpg or png frames, a zip file of such frames, or a segment of one of
them. All decoders implement one protocol, `VideoDecoder`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from ...errors import DmgalError
from ..annotations.segment import file_and_span
from .base import OpenVideo, StaleFrameCountError, VideoDecoder, VideoError, VideoProbe
from .images import open_images
from .segments import VideoSegment

ChooseFrames = Callable[[int], Sequence[int]]
DecoderName = Literal["pyav", "decord"]
"""Each name stands for the module ``decoding/NAME_video.py``, whose ``Decoder`` is the class to use."""


def open_video(path: str | os.PathLike[str], decoder: DecoderName = "pyav", threads: int = 1) -> OpenVideo:
    """Open a video file, a folder of frames, a zip file of frames, or a segment of one of them.

    Args:
        path: of the video. ``FILE#t=START,END`` is a segment in seconds, ``FILE#frames=START,END`` one in frames.
        decoder: for video files: ``pyav``, which is exact, or ``decord`` (see ``decord_video``).
        threads: maximum number of threads of a file's decoder.

    Raises:
        DmgalError: an unknown decoder, or fewer than one thread.
        VideoError: the path does not exist, is not a video, or has no frames or frames of more than ``MAX_PIXELS``
            pixels.
    """
    known = get_args(DecoderName)
    if decoder not in known or threads < 1:
        raise DmgalError(
            "Cannot open a video.",
            received=f"decoder={decoder!r}, threads={threads!r}",
            expected=f"a decoder among {', '.join(known)}, and at least 1 thread",
            remedy="Correct the decoder's name or the number of threads.",
        )
    file, span = file_and_span(path)
    video: OpenVideo = open_images(Path(file)) or decoder_class(decoder)(Path(file), threads)
    return video if span is None else VideoSegment(Path(path), video, file, span)


def decoder_class(decoder: DecoderName) -> type[VideoDecoder]:
    """Return the class that implements `VideoDecoder` in a decoder's module."""
    decoder_of_module: type[VideoDecoder] = import_module(f".{decoder}_video", __package__).Decoder
    return decoder_of_module


def read_clip(
    path: str | os.PathLike[str] | OpenVideo,
    choose: ChooseFrames,
    at_least: int = 1,
    decoder: DecoderName = "pyav",
    threads: int = 1,
) -> Tensor:
    """Return the chosen frames of a video, uint8 ``(T, 3, H, W)``, upright, with square pixels.

    Args:
        path: a video file, a folder of frames, a zip file of frames, or an open video.
        choose: maps the number of frames to the wanted indices. It is called again if the number proves wrong.
        at_least: a damaged video is used only if at least this many of its frames decode.
        decoder: see `open_video`.
        threads: see `open_video`.

    Raises:
        VideoError: the video cannot be read.
    """
    video = open_video(path, decoder, threads) if isinstance(path, str | os.PathLike) else path
    while True:
        if video.damage is not None and video.num_frames < at_least:
            reason = f"only {video.num_frames} frames decode of {at_least} wanted; then {video.damage}"
            raise VideoError(path if isinstance(path, str | os.PathLike) else "in memory", reason)
        try:
            return video.read(choose(video.num_frames))
        except StaleFrameCountError:
            continue


def probe_video(path: str | os.PathLike[str]) -> VideoProbe:
    """Decode a whole video file, folder or zip file of frames with PyAV and one thread. Report its usable part.

    Raises:
        VideoError: no part of it can be used. The message contains the reason.
    """
    video: Any = open_video(path)
    probe: VideoProbe = video.probe()
    return probe
