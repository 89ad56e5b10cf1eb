"""Deterministic writer of frames as H.264 files that any player shows."""

from __future__ import annotations

import os
from pathlib import Path

import av
from einops import rearrange
from torch import Tensor

FRAMES_PER_SECOND = 10
# The quality preserves colors and edges. Without zerolatency, x264 looks ahead at later frames to distribute bits,
# and its output for small pictures differs between runs.
OPTIONS = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
UNFINISHED = ".part"


def write_video(path: Path, clip: Tensor) -> None:
    """Write uint8 RGB ``(T, 3, H, W)`` with even H and W as H.264 in an mp4 file.

    The file gets its name when it is complete.

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
    # "file:" keeps FFmpeg from reading a name with a colon as a protocol.
    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=OPTIONS)
        stream.height, stream.width = clip.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the output depends on the number of threads
        for image in rearrange(clip, "t c h w -> t h w c").contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
