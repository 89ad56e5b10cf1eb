"""Small real videos whose frames show their own number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

BITS = 8
HEIGHT, WIDTH = 64, 128


def barcode(number: int) -> np.ndarray:
    """An image whose upper half is ``number`` in binary, in 16-pixel columns that survive any codec."""
    image = np.full((HEIGHT, WIDTH, 3), number * 37 % 256, dtype=np.uint8)
    for bit in range(BITS):
        image[: HEIGHT // 2, bit * 16 : bit * 16 + 16] = 255 * (number >> bit & 1)
    return image


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[Tensor], list[int]]:
    """Read the barcodes of a clip ``(T, 3, 64, 128)``."""

    def read(clip: Tensor) -> list[int]:
        columns = rearrange(clip.float().mean(1)[:, : HEIGHT // 2], "t h (bits w) -> t h bits w", bits=BITS)
        bits = columns[:, 4:-4, :, 4:-4].mean((1, 3)) > 128  # (T, BITS)
        return (bits * 2 ** torch.arange(BITS)).sum(1).tolist()

    return read


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Encode frames with the given numbers at the given times."""

    def write(
        path: Path,
        numbers: Sequence[int],
        codec: str = "libx264",
        options: dict[str, str] | None = None,
        times: Sequence[int] | None = None,
        muxer_options: dict[str, str] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=muxer_options or {}) as container:
            stream = container.add_stream(codec, rate=25, options=options or {})
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for number, time in zip(numbers, times or range(len(numbers)), strict=True):
                frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def write_frames() -> Callable[[Path, Sequence[int]], Path]:
    """Write a folder of frames with the given numbers, whose names need natural sorting."""

    def write(folder: Path, numbers: Sequence[int]) -> Path:
        folder.mkdir(parents=True)
        for index, number in enumerate(numbers):
            Image.fromarray(barcode(number)).save(folder / f"frame{index + 1}.png")
        return folder

    return write
