"""Parts that all figures share: colors, headings, frames with their grid of cells, and heat over frames.

The color maps are cividis and viridis, which people with every kind of color vision read alike.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Literal

import matplotlib
import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from torch import Tensor
from torch.nn.functional import interpolate

from .maps import Recording

SIMILARITY, HEAT = "cividis", "viridis"
INK, SOFT, LINE = "#1c2430", "#5b6572", "#d5dae1"
QUERY = "#d55e00"
CLASSES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", "#5b6572", "#332288", "#88aa00", "#aa4499")
"""Colors of Okabe and Ito, and a few more. Markers differ too."""
MARKERS = "osD^vPX<>*"
MOST_NAME = 24
HEAT_OPACITY = 0.62


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    _layout(figure).set(w_pad=0.04, h_pad=0.05, wspace=0.02, hspace=0.03)
    return figure


def _layout(figure: Figure) -> ConstrainedLayoutEngine:
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # as in `new_figure`
    return engine


def heading(figure: Figure, title: str, text: str) -> None:
    """Write a title and an explanation at the top left of a figure."""
    lines = textwrap.fill(text, round(12.5 * figure.get_figwidth()))
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
    count = lines.count("\n") + 1
    _layout(figure).set(rect=(0, 0, 1, 1 - 0.19 * (count - 1) / figure.get_figheight()))
    top = 1 - 0.36 / figure.get_figheight()
    figure.text(0.01, top, lines, ha="left", va="top", fontsize=9.5, color=SOFT, linespacing=1.35)


def pixels(frame: Tensor) -> np.ndarray:
    """Return a frame ``(3, H, W)`` for ``imshow``."""
    return rearrange(frame, "c h w -> h w c").numpy()


def bare(axes: Axes) -> None:
    """Remove ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def show_frame(axes: Axes, frame: Tensor, cells: tuple[int, int] | None = None, title: str = "") -> None:
    """Show a frame ``(3, H, W)``, with a numbered grid of cells if there are any."""
    height, width = frame.shape[-2:]
    axes.imshow(pixels(frame), interpolation="nearest", extent=(0, width, height, 0))
    bare(axes)
    axes.set_title(title, fontsize=9, color=INK, pad=3)
    if cells is None:
        return
    rows, columns = cells
    stroke = [withStroke(linewidth=2.2, foreground="black", alpha=0.55)]
    for row in range(1, rows):
        axes.axhline(height * row / rows, color="white", linewidth=0.9, alpha=0.9, path_effects=stroke)
    for column in range(1, columns):
        axes.axvline(width * column / columns, color="white", linewidth=0.9, alpha=0.9, path_effects=stroke)
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        x, y = width * (column + 0.08), height * (row + 0.08)
        number = axes.text(x / columns, y / rows, str(cell + 1), color="white", fontsize=7, ha="left", va="top")
        number.set_path_effects([withStroke(linewidth=1.8, foreground="black", alpha=0.8)])


def show_heat(axes: Axes, frame: Tensor, heat: Tensor, norm: Normalize, title: str = "") -> None:
    """Show heat ``(H', W')`` of a grid of patches over a gray frame ``(3, H, W)``."""
    height, width = frame.shape[-2:]
    gray = frame.float().mean(dim=0).numpy()
    extent = (0, width, height, 0)
    axes.imshow(gray, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    axes.imshow(heat.numpy(), cmap=HEAT, norm=norm, alpha=HEAT_OPACITY, interpolation="bilinear", extent=extent)
    axes.set(xlim=(0, width), ylim=(height, 0))
    bare(axes)
    axes.set_title(title, fontsize=9, color=INK, pad=3)


def heat_images(frames: Tensor, heat: Tensor) -> Tensor:
    """Return heat ``(T, H', W')`` over gray frames, uint8 ``(T, 3, H, W)``, drawn as by `show_heat`."""
    smooth = interpolate(heat[:, None], frames.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    colors = matplotlib.colormaps[HEAT](attention_limits(heat)(smooth.numpy()))[..., :3]
    gray = frames.float().mean(dim=1, keepdim=True)
    mixed = HEAT_OPACITY * 255 * torch.from_numpy(rearrange(colors, "t h w c -> t c h w")) + (1 - HEAT_OPACITY) * gray
    return mixed.round().to(torch.uint8)


def show_map(axes: Axes, values: Tensor, norm: Normalize, title: str = "", numbered: bool = True) -> None:
    """Show a map ``(K, K)`` of similarity, with a mark at its largest value and numbered cells."""
    count = len(values)
    axes.imshow(values.numpy(), cmap=SIMILARITY, norm=norm, interpolation="nearest")
    axes.set_title(title, fontsize=9, color=INK, pad=3)
    ticks = range(count) if numbered and count <= 9 else []
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks], fontsize=6, color=SOFT)
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks], fontsize=6, color=SOFT)
    axes.tick_params(length=0, pad=1.5)
    axes.spines[:].set_color(LINE)


def mark_largest(axes: Axes, values: Tensor) -> tuple[int, int]:
    """Draw a box around the largest value of a map and return its row and column."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    axes.plot(
        [column - 0.5, column + 0.5, column + 0.5, column - 0.5, column - 0.5],
        [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5],
        color="white",
        linewidth=1.4,
        path_effects=[withStroke(linewidth=2.8, foreground="black")],
        clip_on=False,
        zorder=6,
    )
    return row, column


def color_bar(
    figure: Figure,
    norm: Normalize,
    cmap: str,
    axes: Iterable[Axes],
    label: str,
    aspect: float = 28,
    location: Literal["left", "right"] = "right",
) -> None:
    """Add the one color bar of a figure beside or below some axes."""
    mapped = ScalarMappable(norm, cmap)
    bar = figure.colorbar(mapped, ax=list(axes), aspect=aspect, extend="max", location=location)
    bar.set_label(label, fontsize=9, color=SOFT)
    bar.ax.tick_params(labelsize=8, colors=SOFT, length=2)
    bar.outline.set_visible(False)


def limits(*tensors: Tensor) -> Normalize:
    """Return one color scale for several tensors, from zero or below. The largest 1 % of the values share a color."""
    values = np.concatenate([tensor.flatten().numpy() for tensor in tensors])
    low, high = min(0.0, float(np.quantile(values, 0.01))), float(np.quantile(values, 0.99))
    high = high if high > low else float(values.max())
    return Normalize(low, high if high > low else low + 1.0)


def attention_limits(*tensors: Tensor) -> Normalize:
    """Return one color scale for attention, from 0 to at least 2, so that an even share of 1 is never bright."""
    return Normalize(0.0, max(2.0, limits(*tensors).vmax or 0.0))


def shown_name(name: str) -> str:
    """Return a name that fits beside a row, and in which a dollar sign is no formula."""
    short = name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"
    return short.replace("$", r"\$")


def after_colon(name: str) -> str:
    """Return the end of a heading that names a video, if it has a name."""
    return f": {shown_name(name)}" if name else ""


def source_of(recording: Recording) -> str:
    """Return the layer of a recording and the treatment of its features in words."""
    return recording.title + (", motion minus that of still frames" if recording.relative else "")
