"""Figures of recordings. Each function returns a new Matplotlib figure.

`motion_maps` and `pair_maps` show the maps of M2ACL's README and DMGAL's Figures 4 and 5, `attention_overlay` and
`task_attention` the attention within a video and within a task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import DmgalError
from .drawing import (
    HEAT,
    INK,
    QUERY,
    SIMILARITY,
    SOFT,
    after_colon,
    attention_limits,
    bare,
    color_bar,
    heading,
    limits,
    mark_largest,
    new_figure,
    show_frame,
    show_heat,
    show_map,
    shown_name,
    source_of,
)
from .maps import (
    Direction,
    Recording,
    cell_grid,
    looks,
    motion_cells,
    received_attention,
    shares,
    similarity,
)

MOST_CLASSES = 12
DIRECTIONS = {
    "both": "motion to the next and to the previous frame",
    "forward": "motion to the next frame",
    "backward": "motion to the previous frame",
}
HOW_TO_READ = """Columns: cells of
frame t + 1.
The box is the brightest
pair: a cell that moves
in frame t, and the one
that moves like it in
frame t + 1."""
SIMILARITY_LABEL = "similarity of motion (product of features)"


def motion_maps(
    recording: Recording, video: int = -1, cells: int = 3, direction: Direction = "both", name: str = ""
) -> Figure:
    """Show the frames of a video with their cells, the self map of each frame and the cross map to the next frame.

    Args:
        recording: see `record`.
        video: index of the video.
        cells: rows and columns of cells.
        direction: motion to the next frame, to the previous one, or both.
        name: of the video, for the heading.
    """
    values, grid = motion_cells(recording, cells, direction)[video], cell_grid(recording, cells)
    within, across = similarity(values, values), similarity(values[:-1], values[1:])
    norm, count = limits(within, across), recording.num_frames
    figure = new_figure(1.42 * count + 1.6, 5.6)
    axes = figure.subplots(3, count, squeeze=False)
    for t in range(count):
        show_frame(axes[0, t], recording.frames[video, t], grid, f"frame {t + 1}")
        show_map(axes[1, t], within[t], norm, f"{t + 1} with itself")
        if t + 1 < count:
            show_map(axes[2, t], across[t], norm, f"{t + 1} with {t + 2}")
            row, column = mark_largest(axes[2, t], across[t])
            axes[2, t].set_xlabel(f"cell {row + 1} → {column + 1}", fontsize=8, color=INK, labelpad=2)
    bare(axes[2, -1])
    axes[2, -1].text(0.0, 0.98, HOW_TO_READ, transform=axes[2, -1].transAxes, fontsize=7.5, color=SOFT, va="top")
    for row in (1, 2):
        axes[row, 0].set_ylabel("cell of frame t", fontsize=8.5, color=INK)
    axes[1, -1].set_xlabel("cell of the same frame", fontsize=8, color=INK, labelpad=2)
    color_bar(figure, norm, SIMILARITY, axes[1:].flat, SIMILARITY_LABEL)
    heading(
        figure,
        f"Similar motion within a video{after_colon(name)}",
        f"{source_of(recording)}. Each frame has {grid[0]} x {grid[1]} numbered cells. A map compares the "
        f"{DIRECTIONS[direction]} of two frames: cells of frame t down, cells of the same or the next frame across. "
        "Bright: both cells move alike.",
    )
    return figure


def pair_maps(
    recording: Recording,
    first: tuple[int, int],
    second: tuple[int, int],
    cells: int = 3,
    direction: Direction = "both",
    names: tuple[str, str] = ("support", "query"),
) -> Figure:
    """Show the maps of all pairs of frames of two videos, and that of one pair with its frames.

    Args:
        recording: see `record`.
        first: video and frame of one half of the pair.
        second: video and frame of the other half, which may be of the same video.
        cells: see `motion_maps`.
        direction: see `motion_maps`.
        names: of the videos.

    Raises:
        DmgalError: there is no such frame.
    """
    for _, frame in (first, second):
        check_frame(frame, recording.num_frames)
    values, grid = motion_cells(recording, cells, direction), cell_grid(recording, cells)
    ones, others = values[first[0]], values[second[0]]
    every = similarity(ones[:, None], others[None])  # (T, T, K, K)
    norm, count, size = limits(every), recording.num_frames, every.shape[-1]
    figure = new_figure(13.2, 7.4)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1.32, 1)))
    sides = left.subplots(
        count + 1, count + 1, gridspec_kw={"wspace": 0.0, "hspace": 0.0}, subplot_kw={"aspect": "equal"}
    )
    bare(sides[0, 0])
    for t in range(count):
        show_frame(sides[0, t + 1], recording.frames[second[0], t], title=f"{t + 1}")
        show_frame(sides[t + 1, 0], recording.frames[first[0], t])
        sides[t + 1, 0].set_ylabel(f"{t + 1}", fontsize=9, rotation=0, ha="right", va="center", color=INK)
        for other in range(count):
            show_map(sides[t + 1, other + 1], every[t, other], norm, numbered=False)
    chosen = sides[first[1] + 1, second[1] + 1]
    chosen.spines[:].set(color=QUERY, linewidth=2.5)
    chosen.set_zorder(5)
    left.supxlabel(f"frames of {shown_name(names[1])} across", fontsize=9.5, color=INK)
    left.supylabel(f"frames of {shown_name(names[0])} down", fontsize=9.5, color=INK)
    _one_pair(right, recording, first, second, every[first[1], second[1]], norm, grid, names)
    heading(
        figure,
        f"Similar motion in {shown_name(names[0])} and {shown_name(names[1])}",
        f"{source_of(recording)}. Left: a {size} x {size} map for every pair of frames. Right: the outlined pair with "
        f"its numbered cells. A map compares the {DIRECTIONS[direction]}. Bright: both cells move alike.",
    )
    return figure


def _one_pair(
    figure: Figure,
    recording: Recording,
    first: tuple[int, int],
    second: tuple[int, int],
    values: Tensor,
    norm: Normalize,
    grid: tuple[int, int],
    names: tuple[str, str],
) -> None:
    """Draw two frames with their cells, and their map with its color bar."""
    layout = figure.subplot_mosaic([["first", "second"], ["map", "map"]], height_ratios=(1, 1.7))
    for key, (video, frame), name in zip(("first", "second"), (first, second), names, strict=True):
        title = f"{shown_name(name)}, frame {frame + 1}"
        show_frame(layout[key], recording.frames[video, frame], grid, title)
    axes = layout["map"]
    show_map(axes, values, norm)
    axes.tick_params(labelsize=9)
    row, column = mark_largest(axes, values)
    axes.set_ylabel(f"cell of {shown_name(names[0])}, frame {first[1] + 1}", fontsize=9, color=INK)
    axes.set_xlabel(
        f"cell of {shown_name(names[1])}, frame {second[1] + 1}  (brightest: {row + 1} with {column + 1})",
        fontsize=9,
        color=INK,
    )
    color_bar(figure, norm, SIMILARITY, [axes], SIMILARITY_LABEL)


def attention_overlay(recording: Recording, video: int = -1, name: str = "") -> Figure:
    """Show the attention that each patch of a video receives from its own frame, over the frames."""
    heat, count = received_attention(recording, video), recording.num_frames
    norm = attention_limits(heat)
    figure = new_figure(1.42 * count + 1.4, 4.0)
    axes = figure.subplots(2, count, squeeze=False)
    for t in range(count):
        show_frame(axes[0, t], recording.frames[video, t], title=f"frame {t + 1}")
        show_heat(axes[1, t], recording.frames[video, t], heat[t], norm)
    color_bar(figure, norm, HEAT, axes.flat, "attention received\n(1 = an even share)", aspect=18)
    heading(
        figure,
        f"Where the model looks within a video{after_colon(name)}",
        f"{recording.title}. Every patch of a frame attends to the patches of the same frame that move like it. Bright "
        "patches receive much of this attention.",
    )
    return figure


def task_attention(
    recording: Recording,
    labels: Sequence[int],
    class_names: Sequence[str],
    query: int = -1,
    name: str = "query",
    answer: str = "",
) -> Figure:
    """Show where a query looks in the first support video of each class, and the share of each class.

    A layer without attention across videos shows which motion of the support resembles that of the query.

    Args:
        recording: of a task, see `record`.
        labels: class of each support video, ``(S,)``, counted from 0.
        class_names: ``(n_way,)``.
        query: index of the query video.
        name: of the query.
        answer: the model's answer, for the heading.

    Raises:
        DmgalError: the recording has no support videos.
    """
    if not recording.num_support:
        raise DmgalError(
            "There is no support video to look at.",
            received="a recording of queries alone",
            expected="support videos before the query",
            remedy="Pass num_support to record.",
        )
    heat, share = looks(recording, query), shares(recording, labels, query).mean(dim=0)
    classes = list(range(len(class_names)))[:MOST_CLASSES]
    norm, count = attention_limits(*(heat[_first_of(c, labels)] for c in classes)), recording.num_frames
    figure = new_figure(1.2 * count + 4.6, 1.28 * (len(classes) + 1) + 1.0)
    widths = [*[1.0] * count, 1.3]
    axes = figure.subplots(len(classes) + 1, count + 1, squeeze=False, gridspec_kw={"width_ratios": widths})
    for t in range(count):
        show_frame(axes[0, t], recording.frames[query, t], title=f"frame {t + 1}")
    _row_name(axes[0, 0], "query" if name == "query" else f"query\n{shown_name(name)}", QUERY)
    bare(axes[0, -1])
    what = "attention" if recording.attention == "across" else "weight"
    axes[0, -1].text(0.0, 0.02, f"share of the {what}", fontsize=8.5, color=SOFT, transform=axes[0, -1].transAxes)
    for row, c in enumerate(classes, start=1):
        video = _first_of(c, labels)
        for t in range(count):
            show_heat(axes[row, t], recording.frames[video, t], heat[video, t], norm)
        _row_name(axes[row, 0], shown_name(class_names[c]), INK)
        is_ahead = int((100 * share).round().gt(round(100 * share[c].item()) - 1).sum()) == 1
        _share_bar(axes[row, -1], share[c].item(), share.max().item(), is_ahead)
    color_bar(figure, norm, HEAT, axes[:, -1], f"{what}\n(1 = an even share)", aspect=24, location="right")
    title, text = _task_heading(recording)
    heading(figure, title, f"{text} The model's answer: {shown_name(answer)}." if answer else text)
    return figure


def _task_heading(recording: Recording) -> tuple[str, str]:
    if recording.attention == "across":
        of = "its class token" if recording.class_token_only else "its patches, averaged"
        text = "Each frame of the query attends to the frame of the same index of all support videos at once: "
        return (
            "Where the query looks in each class",
            f"{recording.title}, attention of {of}. {text}the shares sum to 100 %.",
        )
    text = (
        "This layer has no attention between videos. The colors show which patches a query would attend to by the "
        "similarity of its motion features alone."
    )
    return "Where each class moves like the query", f"{source_of(recording)}. {text}"


def _first_of(label: int, labels: Sequence[int]) -> int:
    return list(labels).index(label)


def _row_name(axes: Axes, text: str, color: str) -> None:
    axes.set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center", color=color, labelpad=8)


def _share_bar(axes: Axes, share: float, largest: float, is_ahead: bool) -> None:
    axes.barh([0], [share], height=0.36, color=QUERY if is_ahead else "#9aa4b1")
    axes.text(share + 0.02 * largest, 0, f"{100 * share:.0f} %", va="center", fontsize=9.5, color=INK)
    axes.set(xlim=(0, 1.45 * largest), ylim=(-0.6, 0.6))
    bare(axes)
    if is_ahead:
        axes.texts[-1].set_fontweight("bold")


def check_frame(frame: int, count: int) -> None:
    """Raise a DmgalError unless there is a frame of this index."""
    if not 0 <= frame < count:
        raise DmgalError(
            "There is no such frame.",
            received=f"frame {frame + 1}",
            expected=f"1 to {count}, the number of frames that the model sees",
            remedy="Choose one of these.",
        )
