"""Writing of figures: PNG and SVG for one figure, GIF and mp4 for a film of several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import av
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ..errors import DmgalError
from ..files import atomic_write, printable

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

PICTURES, FILMS = (".png", ".svg"), (".gif", ".mp4")
SVG: dict[RcKeyType, object] = {"svg.fonttype": "none", "svg.hashsalt": "dmgal"}
"""Text stays text, and the same values give the same file."""
NO_METADATA: dict[str, dict[str, None]] = {
    ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    ".png": {"Software": None},
}
DPI = 144


def check_ending(path: Path, endings: tuple[str, ...] = PICTURES + FILMS) -> None:
    """Raise a DmgalError unless the name of a file to write has one of these endings."""
    if path.suffix.lower() not in endings:
        raise DmgalError(
            "A picture cannot be written in this format.",
            received=printable(path.name),
            expected=f"a name that ends in {', '.join(endings)}",
            remedy="Change the ending.",
        )


def save_picture(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG or SVG by the ending of the path. An existing file is replaced.

    Raises:
        DmgalError: another ending, or the file cannot be written.
    """
    path = Path(path)
    check_ending(path, PICTURES)
    ending = path.suffix.lower()
    with _writing(path) as temporary, matplotlib.rc_context(SVG):
        figure.savefig(temporary, format=ending[1:], dpi=DPI, metadata=NO_METADATA[ending])


def save_film(figures: Iterable[Figure], path: str | os.PathLike[str], frames_per_second: int = 2) -> None:
    """Write figures of one size as the frames of a GIF or an mp4 (H.264). An existing file is replaced.

    Raises:
        DmgalError: another ending, or the file cannot be written.
    """
    path = Path(path)
    check_ending(path, FILMS)
    images = [raster(figure) for figure in figures]
    with _writing(path) as temporary:
        if path.suffix.lower() == ".gif":
            _write_gif(temporary, images, frames_per_second)
        else:
            _write_mp4(temporary, images, frames_per_second)


def raster(figure: Figure, dpi: int = 100) -> NDArray[np.uint8]:
    """Return the pixels of a figure, ``(H, W, 3)`` with even sides, as H.264 needs them."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.ascontiguousarray(image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2])


def _write_gif(path: Path, images: list[NDArray[np.uint8]], frames_per_second: int) -> None:
    # One palette for all frames, so that colors do not flicker.
    palette = Image.fromarray(np.concatenate(images)).quantize(256, dither=Image.Dither.NONE)
    frames = [Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    duration = round(1000 / frames_per_second)
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)


def _write_mp4(path: Path, images: list[NDArray[np.uint8]], frames_per_second: int) -> None:
    # "file:" keeps FFmpeg from reading a name with a colon as a protocol.
    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "18"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces ``path``, and convert errors of the file system."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise DmgalError(
            "A picture cannot be written.",
            received=f"{printable(str(path))}: {error.strerror or error}",
            expected="a writable folder",
            remedy="Pass another path.",
        ) from error
