"""Films of recordings: one figure per frame of a video, all with the same size and colors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from .drawing import (
    CLASSES,
    HEAT,
    INK,
    LINE,
    QUERY,
    SIMILARITY,
    SOFT,
    attention_limits,
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
from .figures import MOST_CLASSES, SIMILARITY_LABEL
from .maps import (
    Direction,
    Recording,
    cell_grid,
    looks,
    motion_cells,
    motion_strength,
    received_attention,
    similarity,
)


def film_of_maps(
    recording: Recording, video: int = -1, cells: int = 3, direction: Direction = "both"
) -> Iterator[Figure]:
    """Yield a figure per pair of adjacent frames: the two frames with their cells, and their cross map."""
    values, grid = motion_cells(recording, cells, direction)[video], cell_grid(recording, cells)
    across = similarity(values[:-1], values[1:])
    norm = limits(across)
    for t in range(recording.num_frames - 1):
        figure = new_figure(10.0, 4.4)
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        for index in range(2):
            show_frame(axes[index], recording.frames[video, t + index], grid, f"frame {t + index + 1}")
        show_map(axes[2], across[t], norm)
        row, column = mark_largest(axes[2], across[t])
        axes[2].set_ylabel(f"cell of frame {t + 1}", fontsize=9, color=INK)
        axes[2].set_xlabel(f"cell of frame {t + 2}  (brightest: {row + 1} → {column + 1})", fontsize=9, color=INK)
        color_bar(figure, norm, SIMILARITY, [axes[2]], SIMILARITY_LABEL)
        heading(figure, "Similar motion in adjacent frames", f"{source_of(recording)}. Bright: both cells move alike.")
        yield figure


def film_of_pairs(
    recording: Recording,
    first: int,
    second: int,
    cells: int = 3,
    direction: Direction = "both",
    names: tuple[str, str] = ("support", "query"),
) -> Iterator[Figure]:
    """Yield a figure per frame index: the frames of two videos with their cells, and their map."""
    values, grid = motion_cells(recording, cells, direction), cell_grid(recording, cells)
    maps = similarity(values[first], values[second])
    norm = limits(maps)
    for t in range(recording.num_frames):
        figure = new_figure(10.0, 4.4)
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        for index, (video, name) in enumerate(zip((first, second), names, strict=True)):
            show_frame(axes[index], recording.frames[video, t], grid, f"{shown_name(name)}, frame {t + 1}")
        show_map(axes[2], maps[t], norm)
        mark_largest(axes[2], maps[t])
        axes[2].set_ylabel(f"cell of {shown_name(names[0])}", fontsize=9, color=INK)
        axes[2].set_xlabel(f"cell of {shown_name(names[1])}", fontsize=9, color=INK)
        color_bar(figure, norm, SIMILARITY, [axes[2]], SIMILARITY_LABEL)
        heading(figure, "Similar motion in two videos", f"{source_of(recording)}. Bright: both cells move alike.")
        yield figure


def film_of_attention(recording: Recording, video: int = -1) -> Iterator[Figure]:
    """Yield a figure per frame: the frame, and the attention that its patches receive."""
    heat = received_attention(recording, video)
    norm = attention_limits(heat)
    for t in range(recording.num_frames):
        figure = new_figure(8.0, 4.4)
        axes = figure.subplots(1, 2)
        show_frame(axes[0], recording.frames[video, t], title=f"frame {t + 1}")
        show_heat(axes[1], recording.frames[video, t], heat[t], norm)
        color_bar(figure, norm, HEAT, [axes[1]], "attention received (1 = an even share)")
        heading(figure, "Where the model looks", f"{recording.title}.")
        yield figure


def film_of_task(
    recording: Recording, labels: Sequence[int], class_names: Sequence[str], query: int = -1
) -> Iterator[Figure]:
    """Yield a figure per frame: the query, and where it looks in the first support video of each class."""
    classes = [list(labels).index(c) for c in range(len(class_names))][:MOST_CLASSES]
    heat = looks(recording, query)
    norm = attention_limits(*(heat[video] for video in classes))
    columns = min(len(classes) + 1, 6)
    rows = -(-(len(classes) + 1) // columns)
    for t in range(recording.num_frames):
        figure = new_figure(2.0 * columns + 1.2, 2.2 * rows + 1.0)
        axes = figure.subplots(rows, columns, squeeze=False)
        for one in axes.flat:
            one.set_axis_off()
        show_frame(axes.flat[0], recording.frames[query, t], title=f"query, frame {t + 1}")
        axes.flat[0].title.set_color(QUERY)
        for index, video in enumerate(classes, start=1):
            axes.flat[index].set_axis_on()
            title = shown_name(class_names[labels[video]])
            show_heat(axes.flat[index], recording.frames[video, t], heat[video, t], norm, title)
        across = recording.attention == "across"
        color_bar(figure, norm, HEAT, axes.flat, f"{'attention' if across else 'weight'} (1 = an even share)")
        title = "Where the query looks in each class" if across else "Where each class moves like the query"
        heading(figure, title, f"{recording.title}.")
        yield figure


def film_of_time(recording: Recording, video: int = -1) -> Iterator[Figure]:
    """Yield a figure per frame: the strength of motion over the frame, and its curve up to now."""
    strength = motion_strength(recording)[video]
    norm, largest = limits(strength), strength.flatten(1).amax(dim=1).numpy()
    times = range(1, recording.num_frames + 1)
    for t in range(recording.num_frames):
        figure = new_figure(10.0, 4.2)
        axes = figure.subplots(1, 2, width_ratios=(1, 1.4))
        show_heat(axes[0], recording.frames[video, t], strength[t], norm, f"frame {t + 1}")
        color_bar(figure, norm, HEAT, [axes[0]], "length of the motion features", location="left")
        axes[1].plot(times, largest, color=LINE, linewidth=2)
        axes[1].plot(times[: t + 1], largest[: t + 1], color=CLASSES[0], linewidth=2.5, marker="o")
        axes[1].set(xlabel="frame", ylabel="strongest patch", ylim=(0, 1.1 * largest.max() or 1), xticks=times)
        axes[1].spines[:].set_visible(False)
        axes[1].grid(axis="y", color=LINE)
        axes[1].tick_params(length=0, colors=SOFT)
        heading(figure, "Motion over time", f"{source_of(recording)}.")
        yield figure
