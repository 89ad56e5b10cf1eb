"""Figures of a matrix: accuracy against costs with the Pareto front, accuracy against episodes seen, and cost by part.

The SVG is deterministic: text is drawn as paths of Matplotlib's own font, identifiers have a fixed salt, and no date is
stored.
"""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from dmgal.bench.matrix.report import Row, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from matplotlib.typing import RcKeyType

Form = Literal["svg", "png"]
COSTS = {
    "trained parameters": ("parameters", "trained"),
    "peak memory, MB": ("memory_mb", "max"),
    "seconds per training step": ("step_seconds", "median"),
}
"""Keys of a cost in ``train_info`` by the label of its axis."""
DARK = {"background": "#0d1117", "text": "#e6edf3", "front": "#58a6ff", "others": "#8b949e"}
LIGHT = {"background": "#ffffff", "text": "#1f2328", "front": "#0550ae", "others": "#818b98"}
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Colors of curves and parts, on both backgrounds: those of Okabe and Ito that color-blind readers can tell apart."""
DASHES = ("-", "--", ":")
"""Line styles by the round of the colors."""
PANEL = (4.0, 4.2)
"""Width and height of a panel in inches."""
CORNERS, DISTANCES = ((1, 1), (-1, 1), (1, -1), (-1, -1)), (2, 12, 22, 32, 42, 52)
"""Positions of a name beside its point, in order of preference: sides, and distances upward or downward in points."""
MARKER = 3.0
"""Half of the width of a marker in pixels."""


@dataclass(frozen=True)
class Point:
    """Cost and accuracy of a method."""

    name: str
    cost: float
    accuracy: float


@contextmanager
def drawing(dark: bool = False) -> Iterator[ModuleType]:
    """Return Matplotlib's pyplot with settings under which a figure does not depend on the user's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = DARK if dark else LIGHT
    settings: dict[RcKeyType, object] = {
        "svg.hashsalt": "dmgal",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "backend": "Agg",
    }
    if dark:
        names: tuple[RcKeyType, ...] = (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
        )
        settings |= dict.fromkeys(names, colors["text"])
        settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), colors["background"])
    with pyplot.rc_context({**matplotlib.rcParamsDefault, **settings}):
        yield pyplot


def saved(figure: Figure, form: Form) -> bytes:
    """Return the bytes of a figure, and close it. An SVG has no date."""
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=150, metadata={"Date": None, "Creator": None} if form == "svg" else None)
    pyplot.close(figure)
    return file.getvalue()


def cost_figure(rows: Sequence[Row], form: Form = "svg", dark: bool = False) -> bytes:
    """Plot the accuracy with the fewest shots against each cost. Rows without result or cost are omitted."""
    colors = DARK if dark else LIGHT
    shots = min((key for row in rows for one in row.results for key in one["train_info"]["results"]), key=int)
    with drawing(dark) as pyplot:
        size = (PANEL[0] * len(COSTS), PANEL[1])
        figure, panels = pyplot.subplots(1, len(COSTS), figsize=size, layout="constrained", sharey=True)
        to_label: list[tuple[Axes, list[Point], list[Point]]] = []
        for axes, (label, keys) in zip(panels, COSTS.items(), strict=True):
            points = points_of(rows, shots, keys)
            front = pareto_front(points)
            others = [point for point in points if point not in front]
            for shown, color in ((others, colors["others"]), (front, colors["front"])):
                axes.plot([p.cost for p in shown], [p.accuracy for p in shown], "o", color=color, markersize=5)
            axes.step([p.cost for p in front], [p.accuracy for p in front], where="post", color=colors["front"], lw=1)
            axes.set(xlabel=label)
            if keys == COSTS["trained parameters"]:
                axes.set_xscale("symlog", linthresh=100)
            axes.margins(x=0.25, y=0.12)
            axes.grid(alpha=0.25)
            to_label.append((axes, front, others))
        panels[0].set(ylabel=f"accuracy %, {shots} shot{'s' if shots != '1' else ''}")
        figure.draw_without_rendering()  # places the axes
        for axes, front, others in to_label:
            taken = [_around(axes, point) for point in (*front, *others)]
            _label(axes, front, taken, color=colors["front"], weight="bold")
            _label(axes, others, taken, color=colors["others"])
        return saved(figure, form)


def points_of(rows: Sequence[Row], shots: str, keys: Sequence[str]) -> list[Point]:
    """Return the points of one panel, cheapest first."""
    pairs = ((row, row.mean(*keys), row.mean("results", shots, "accuracy", "percent")) for row in rows)
    points = [
        Point(row.name, cost, accuracy) for row, cost, accuracy in pairs if cost is not None and accuracy is not None
    ]
    return sorted(points, key=lambda point: (point.cost, -point.accuracy))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points for which no other is at least as accurate at no higher cost, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def learning_figure(rows: Sequence[Row], form: Form = "svg", dark: bool = False) -> bytes:
    """Plot the validation accuracy against the training episodes seen, means over seeds. Untrained rows are lines."""
    with drawing(dark) as pyplot:
        figure, axes = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
        curves = {row: learning_curve(row) for row in rows}
        end = max((episodes for curve in curves.values() for episodes in curve), default=0)
        shown = [(row, curve) for row, curve in curves.items() if curve]
        names = labels(rows)
        for number, (row, curve) in enumerate(shown):
            style = {"color": SERIES[number % len(SERIES)], "ls": DASHES[number // len(SERIES) % len(DASHES)]}
            is_line = set(curve) == {0}
            xs, ys = ([0, end], [curve[0]] * 2) if is_line else (list(curve), list(curve.values()))
            axes.plot(xs, ys, marker="" if is_line else "o", ms=4, lw=1.5, label=names[row], **style)
        axes.set(xlabel="training episodes seen", ylabel="validation accuracy %")
        axes.grid(alpha=0.25)
        if shown:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return saved(figure, form)


def learning_curve(row: Row) -> dict[int, float]:
    """Return the mean validation accuracy over seeds by the number of training episodes that all of them have seen."""
    curves = []
    for result in row.results:
        per_step = result["run_info"]["recipe"]["train"]["tasks_per_step"]
        entries = result["train_info"].get("validation", ())
        curves.append({per_step * entry["step"]: entry["validation_accuracy"] for entry in entries})
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    return {episodes: statistics.fmean(curve[episodes] for curve in curves) for episodes in common}


def breakdown_figure(rows: Sequence[Row], form: Form = "svg", dark: bool = False) -> bytes:
    """Plot what the seconds of a cell and the operations of a training task consist of, means over seeds."""
    rows = [row for row in rows if row.results][::-1]  # the first one is at the top
    panels: dict[str, Callable[[Row], Mapping[str, float]]] = {
        "seconds of training and test": seconds_by_part,
        "GFLOP of a training task": operations_by_part,
    }
    with drawing(dark) as pyplot:
        size = (PANEL[0] * len(panels), 1.3 + 0.3 * len(rows))
        figure, all_axes = pyplot.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True)
        for axes, (label, parts_of) in zip(all_axes, panels.items(), strict=True):
            parts = [parts_of(row) for row in rows]
            left = [0.0] * len(rows)
            for color, name in zip(SERIES, dict.fromkeys(name for one in parts for name in one), strict=False):
                widths = [one.get(name, 0.0) for one in parts]
                axes.barh(range(len(rows)), widths, left=left, color=color, label=name)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            axes.set_yticks(range(len(rows)), labels=list(labels(rows).values()))
            axes.set(xlabel=label)
            axes.grid(alpha=0.25, axis="x")
            if any(left):
                axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)
        return saved(figure, form)


def seconds_by_part(row: Row) -> dict[str, float]:
    """Return the mean seconds of a row's cells: steps, the rest of the training, the own tests, and everything else."""
    training, tests = (row.mean("seconds", name) or 0.0 for name in ("training", "evaluation"))
    total = statistics.fmean(result["run_info"]["total_time"] for result in row.results)
    steps = min(training, (row.mean("steps") or 0.0) * (row.mean("step_seconds", "median") or 0.0))
    return {
        "training steps": steps,
        "start, validation, saving": training - steps,
        "test on novel classes": tests,
        "other tests and measurements": max(0.0, total - training - tests),
    }


def operations_by_part(row: Row) -> dict[str, float]:
    """Return the operations of a training task: the encoder's forward pass, and the head with the backward pass."""
    video, task = row.mean("gigaflops", "video"), row.mean("gigaflops", "task")
    if video is None or task is None:
        return {}
    episode = row.results[0]["run_info"]["recipe"]["episode"]
    forward = min(task, video * episode["n_way"] * (episode["k_shot"] + episode["n_query"]))
    return {"encoder, forward": forward, "head and backward": task - forward}


Draw = Callable[[Sequence[Row], Form, bool], bytes]
FIGURES: dict[str, Draw] = {"figure": cost_figure, "learning": learning_figure, "breakdown": breakdown_figure}
"""Figures of a report by the first part of their file names."""


def _label(axes: Any, points: Sequence[Point], taken: list[Bbox], **style: str) -> None:
    """Name the points where the names overlap nothing, or as far away as allowed. ``taken`` has the boxes so far."""
    from matplotlib.text import Text

    renderer = axes.figure.canvas.get_renderer()
    for point in points:
        for distance, (right, up) in itertools.product(DISTANCES, CORNERS):
            label = axes.annotate(
                point.name,
                (point.cost, point.accuracy),
                (5 * right, distance * up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va="bottom" if up > 0 else "top",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": style["color"]} if distance > DISTANCES[0] else None,
                fontsize=7,
                **style,
            )
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)  # without the line
            is_inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
            if (is_inside and not box.count_overlaps(taken)) or (distance, right, up) == (DISTANCES[-1], *CORNERS[-1]):
                break
            label.remove()
        taken.append(box)


def _around(axes: Axes, point: Point) -> Bbox:
    """Return the box of a marker in pixels."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.cost, point.accuracy))
    return Bbox.from_bounds(x - MARKER, y - MARKER, 2 * MARKER, 2 * MARKER)
