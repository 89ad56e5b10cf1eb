"""Figures of a matrix: accuracy against trained parameters, memory and time of a step, with the Pareto front.

The SVG is deterministic: text is drawn as paths of Matplotlib's own font, identifiers have a fixed salt, and no date is
stored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from dmgal.bench.matrix.report import Row

Form = Literal["svg", "png"]
COSTS = {
    "trained parameters": ("parameters", "trained"),
    "peak memory, MB": ("memory_mb", "max"),
    "seconds per training step": ("step_seconds", "median"),
}
"""Keys of a cost in ``train_info`` by the label of its axis."""
DARK = {"background": "#0d1117", "text": "#e6edf3", "front": "#58a6ff", "others": "#8b949e"}
LIGHT = {"background": "#ffffff", "text": "#1f2328", "front": "#0550ae", "others": "#818b98"}
PANEL = (4.0, 3.6)
"""Width and height of a panel in inches."""


@dataclass(frozen=True)
class Point:
    """Cost and accuracy of a method."""

    name: str
    cost: float
    accuracy: float


@contextmanager
def drawing(dark: bool = False) -> Iterator[Any]:
    """Return Matplotlib's pyplot with settings under which a figure does not depend on the user's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = DARK if dark else LIGHT
    settings: dict[Any, Any] = {
        "svg.hashsalt": "dmgal",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "backend": "Agg",
    }
    if dark:
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
        settings |= dict.fromkeys(names, colors["text"])
        settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), colors["background"])
    with pyplot.rc_context({**matplotlib.rcParamsDefault, **settings}):
        yield pyplot


def saved(figure: Any, form: Form) -> bytes:
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
        for axes, (label, keys) in zip(panels, COSTS.items(), strict=True):
            points = points_of(rows, shots, keys)
            front = pareto_front(points)
            _plot(axes, [point for point in points if point not in front], colors["others"], "normal")
            _plot(axes, front, colors["front"], "bold")
            axes.step([p.cost for p in front], [p.accuracy for p in front], where="post", color=colors["front"], lw=1)
            axes.set(xlabel=label)
            if keys == COSTS["trained parameters"]:
                axes.set_xscale("symlog", linthresh=100)
            axes.margins(x=0.25, y=0.12)
            axes.grid(alpha=0.25)
        panels[0].set(ylabel=f"accuracy %, {shots} shot{'s' if shots != '1' else ''}")
        return saved(figure, form)


def points_of(rows: Sequence[Row], shots: str, keys: Sequence[str]) -> list[Point]:
    """Return the points of one panel, cheapest first."""
    pairs = ((row, row.mean(*keys), row.mean("results", shots, "accuracy", "percent")) for row in rows)
    points = [Point(row.name, cost, accuracy) for row, cost, accuracy in pairs if None not in (cost, accuracy)]  # type: ignore[arg-type]
    return sorted(points, key=lambda point: (point.cost, -point.accuracy))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points for which no other is at least as accurate at no higher cost, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _plot(axes: Any, points: Sequence[Point], color: str, weight: str) -> None:
    axes.plot([p.cost for p in points], [p.accuracy for p in points], "o", color=color, markersize=5)
    for point in points:
        place = (point.cost, point.accuracy)
        axes.annotate(point.name, place, (5, 4), textcoords="offset points", color=color, weight=weight, fontsize=8)
