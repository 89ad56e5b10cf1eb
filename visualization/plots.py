"""Plots of motion over time and of galleries. Each function returns a new Matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from .drawing import (
    CLASSES,
    HEAT,
    INK,
    LINE,
    MARKERS,
    QUERY,
    SOFT,
    after_colon,
    color_bar,
    heading,
    limits,
    new_figure,
    show_frame,
    shown_name,
    source_of,
)
from .maps import Recording, cell_grid, motion_strength


def motion_over_time(recording: Recording, video: int = -1, cells: int = 3, name: str = "") -> Figure:
    """Show the strength of the motion in each cell of a video over its frames, and its mean and maximum."""
    strength, grid = motion_strength(recording)[video], cell_grid(recording, cells)
    pooled = torch.nn.functional.adaptive_max_pool2d(strength[:, None], grid)
    by_cell = rearrange(pooled, "t 1 h w -> (h w) t")
    norm, count, num_cells = limits(by_cell), recording.num_frames, len(by_cell)
    figure = new_figure(1.3 * count + 2.2, 7.0)
    rows = figure.add_gridspec(3, count, height_ratios=(1.1, 1.6, 1.2))
    for t in range(count):
        show_frame(figure.add_subplot(rows[0, t]), recording.frames[video, t], grid, f"frame {t + 1}")
    axes, curve = figure.add_subplot(rows[1, :]), figure.add_subplot(rows[2, :])
    axes.imshow(by_cell.numpy(), cmap=HEAT, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(num_cells), [str(cell + 1) for cell in range(num_cells)], fontsize=8, color=SOFT)
    axes.set_ylabel("cell", fontsize=9.5, color=INK)
    mean, largest = strength.flatten(1).mean(dim=1).numpy(), strength.flatten(1).amax(dim=1).numpy()
    times = range(1, count + 1)
    curve.plot(times, largest, color=CLASSES[0], marker="o", linewidth=2, label="strongest patch")
    curve.plot(times, mean, color=CLASSES[1], marker="s", linewidth=2, label="mean over patches")
    curve.set(xlim=(0.5, count + 0.5), ylim=(0, 1.3 * largest.max() or 1), xticks=times)
    curve.set_ylabel("length of the\nmotion features", fontsize=9.5, color=INK)
    curve.set_xlabel("frame", fontsize=9.5, color=INK)
    curve.legend(frameon=False, fontsize=9, ncols=2, loc="upper right")
    curve.grid(axis="y", color=LINE)
    for one in (axes, curve):
        one.spines[:].set_visible(False)
        one.tick_params(length=0, labelsize=8.5, colors=SOFT)
    axes.set_xticks([])
    color_bar(figure, norm, HEAT, [axes, curve], "length of the motion features", aspect=24)
    heading(
        figure,
        f"Motion over time{after_colon(name)}",
        f"{source_of(recording)}. The length of a patch's motion features, in each cell that of its strongest patch. "
        "The first frame has no previous and the last no next frame.",
    )
    return figure


def gallery_plot(
    points: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    query: Tensor | None = None,
    method: str = "principal component",
    name: str = "query",
) -> Figure:
    """Show the clips of a gallery as points in a plane, and the query among them.

    Args:
        points: of the clips, ``(S, 2)``, see `plane_of`.
        labels: class of each clip, ``(S,)``, counted from 0.
        class_names: ``(n_way,)``.
        query: point of the query, ``(2,)``.
        method: name of an axis.
        name: of the query.
    """
    figure = new_figure(8.6, 6.6)
    axes = figure.subplots()
    members = torch.tensor(labels)
    for c, class_name in enumerate(class_names):
        own = points[members == c]
        color, marker = CLASSES[c % len(CLASSES)], MARKERS[(c // len(CLASSES) + c) % len(MARKERS)]
        label = shown_name(class_name)
        x, y = own.T.numpy()
        axes.scatter(x, y, color=color, marker=marker, s=62, label=label, edgecolor="white", linewidth=0.8)
        if query is not None and len(own):
            middle = own.mean(dim=0)
            line = torch.stack([query, middle]).T.numpy()
            axes.plot(line[0], line[1], color=color, linewidth=0.8, alpha=0.35, zorder=0)
    if query is not None:
        label = f"query: {shown_name(name)}"
        x, y = query.numpy()
        axes.scatter(x, y, label=label, color=QUERY, marker="*", s=330, edgecolor=INK, linewidth=1.0, zorder=5)
    axes.margins(0.12)
    axes.set_xlabel(f"first {method}", fontsize=9.5, color=INK)
    axes.set_ylabel(f"second {method}", fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(color=LINE, linewidth=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    heading(
        figure,
        "A gallery and a query" if query is not None else "A gallery",
        "Each point is a clip as the head compares it. Points close together look alike to the model. Thin lines lead "
        "from the query to the middle of each class. A plane shows only a part of the distances.",
    )
    return figure
