"""Writes frames as an H.264 file that any player shows; the same frames give the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import av
from torch import Tensor

FRAMES_PER_SECOND = 10
# A quality at which colors and edges survive. Without this tuning x264 looks ahead at later frames to share out bits,
# and on small pictures it then gives other bytes from run to run.
OPTIONS = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
UNFINISHED = ".part"


def write_video(path: Path, clip: Tensor) -> None:
    """Write uint8 RGB ``(T, 3, H, W)``, H and W even, as H.264 in an mp4 file; it gets its name once it is complete.

    Raises:
        OSError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        _encode(unfinished, clip)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _encode(path: Path, clip: Tensor) -> None:
    # "file:" keeps FFmpeg from taking a name with a colon for a protocol
    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=OPTIONS)
        stream.height, stream.width = clip.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more threads give other bytes
        for image in clip.permute(0, 2, 3, 1).contiguous().numpy():  # (T, H, W, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
