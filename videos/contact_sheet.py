"""Contact sheets and films of a generated data set, for people who want to see its classes.

A sheet shows frames of one clip per class, in two columns. A film plays several clips of a class side by side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from ..parallel import completed
from ..progress import progress_bar
from .generated import ClipSettings, write_video

FRAMES_IN_ROW, ROWS_ON_PAGE, CLIPS_IN_FILM = 8, 40, 4


def write_sheets(settings: ClipSettings, folder: Path, workers: int | None = None, progress: bool = True) -> list[Path]:
    """Write pages ``sheet_01.png``, ... and films ``films/<class>.mp4``, and return their paths.

    Args:
        settings: of the data set. Its first clips are shown, as they are before their encoding.
        folder: created if absent. Files of the same names are replaced.
        workers: number of drawing processes; None uses one per core.
        progress: show a progress bar.

    Raises:
        OSError: the files cannot be written.
    """
    films = folder / "films"
    films.mkdir(parents=True, exist_ok=True)
    count = len(settings.classes())
    rows: dict[int, Tensor] = {}
    with progress_bar(progress=progress, total=count, desc="contact sheet", unit="class") as bar:
        for index, row in completed(_Row(settings, films), range(count), workers):
            rows[index] = row
            bar.update()
    names = [shown.name for shown in settings.classes()]
    pages: list[Path] = []
    for start in range(0, count, ROWS_ON_PAGE):
        page = folder / f"sheet_{start // ROWS_ON_PAGE + 1:02d}.png"
        shown = range(start, min(start + ROWS_ON_PAGE, count))
        _page([rows[index] for index in shown], [names[index] for index in shown]).save(page)
        pages.append(page)
    return [*pages, *(films / f"{name}.mp4" for name in names)]


class _Row:
    """Writes the film of a class and returns the row of its sheet, in any process."""

    def __init__(self, settings: ClipSettings, films: Path) -> None:
        self.settings, self.films = settings, films

    def __call__(self, index: int) -> tuple[int, Tensor]:
        clips = [self.settings.clip(index, clip) for clip in range(CLIPS_IN_FILM)]
        film = rearrange(torch.stack(clips), "n t c h w -> t c h (n w)")
        write_video(self.films / f"{self.settings.classes()[index].name}.mp4", film)
        frames = torch.linspace(0, len(film) - 1, FRAMES_IN_ROW).round().long()
        return index, rearrange(clips[0][frames], "t c h w -> h (t w) c").clone()


def _page(rows: list[Tensor], names: list[str]) -> Image.Image:
    """Return a page of two columns."""
    height, width = rows[0].shape[:2]
    length = -(-len(rows) // 2)
    page = Image.new("RGB", (2 * width, height * length))
    draw = ImageDraw.Draw(page)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        left, top = number // length * width, number % length * height
        page.paste(Image.fromarray(row.numpy()), (left, top))
        draw.text((left + 3, top + 2), name, fill="white", stroke_width=2, stroke_fill="black")
    return page
