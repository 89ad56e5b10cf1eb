"""Charts of pages, as SVG elements that follow the colors of the page and load nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from typing import TYPE_CHECKING, Any

from dmgal.episodes.evaluation.statistics import confusion
from dmgal.recipes.reports.comparison import Method
from dmgal.recipes.reports.runs import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox
    from matplotlib.typing import RcKeyType

SVG: dict[RcKeyType, object] = {"svg.fonttype": "none", "svg.hashsalt": "dmgal", "font.size": 10}
"""Text stays text, and the same values give the same file."""
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
CURVES = ("#2e86c9", "#e08a00", "#009e73", "#cc79a7", "#8c6d31", "#7a5bd0")
STYLES = ("solid", "dashed", "dashdot", "dotted")
SMOOTHED = 20
"""Steps of a moving average of the training loss."""


def as_element(figure: Figure, text: str) -> str:
    """Return a figure as an SVG element that a screen reader announces by ``text``."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(SVG):
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)


def as_svg(rows: Sequence[Row]) -> str:
    """Return the chart of accuracies as an SVG element."""
    texts = [f"{row.name} {row.evaluations['accuracy'].accuracy} %" for row in rows]
    return as_element(chart(rows), f"Accuracy against trained parameters: {', '.join(texts)}")


def chart(rows: Sequence[Row]) -> Figure:
    """Return a figure of accuracy against trained parameters, with a mark, an interval and a label per row."""
    from matplotlib.figure import Figure  # slow to import, and only used for pages

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    estimates = [row.evaluations["accuracy"].accuracy for row in rows]
    powers = [math.log10(row.trained_parameters) for row in rows if row.trained_parameters] or [1.0]
    first, last = math.floor(min(powers)), math.ceil(max(powers))
    axes.set_xscale("symlog", linthresh=10**first)
    axes.set_xlim(-0.2 * 10**first, 2 * 10**last)
    ticks = [0, *(10**power for power in range(first, last + 1))]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("trained parameters")
    lowest, highest = (bound(estimate.mean for estimate in estimates) for bound in (min, max))
    axes.set_ylim(max(0, lowest - 8), min(104, highest + 8))
    axes.yaxis.set_major_formatter("{x:.0f} %")
    _plain(axes)
    for index, (row, estimate) in enumerate(zip(rows, estimates, strict=True)):
        x, ends = row.trained_parameters, (estimate.mean - estimate.half_width, estimate.mean + estimate.half_width)
        if math.isfinite(estimate.half_width):
            axes.vlines(x, *ends, linewidth=2, clip_on=False, gid=f"interval{index}")
        # an empty line, since a marker would need a reference in the SVG
        dot = axes.plot([x, x], [estimate.mean] * 2, linewidth=9, clip_on=False, gid=f"mark{index}")
        dot[0].set_solid_capstyle("round")
    figure.draw_without_rendering()  # fixes the scale, which the labels depend on
    taken: list[Bbox] = []
    for index, (row, estimate) in enumerate(zip(rows, estimates, strict=True)):
        text = f"{row.name} {estimate.mean:.1f} %".replace("$", r"\$")
        label = axes.annotate(
            text, (row.trained_parameters, estimate.mean), (0, 0), textcoords="offset points", va="center"
        )
        label.set(gid=f"label{index}", annotation_clip=False)
        taken.append(_place(label, taken, figure.bbox.x1))
    return figure


def _place(label: Annotation, taken: Sequence[Bbox], width: float) -> Bbox:
    """Move a label beside its point, inside the figure and away from other labels if possible. Return its box."""
    for shift, (side, alignment) in product((0, 12, -12, 24, -24, 36, -36), ((8, "left"), (-8, "right"))):
        label.set(position=(side, shift), horizontalalignment=alignment)
        box = label.get_window_extent()
        if box.x0 >= 0 and box.x1 <= width and not any(box.overlaps(other) for other in taken):
            break
    return box


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return training loss and validation accuracy of runs as an SVG element, or nothing if no run was trained.

    Args:
        logs: log entries by the name of the run.
    """
    from matplotlib.figure import Figure

    losses = {name: [(e["step"], e["loss"]) for e in log if _is_finite(e.get("loss"))] for name, log in logs.items()}
    accuracies = {
        name: [(e["step"], e["validation_accuracy"]) for e in log if _is_finite(e.get("validation_accuracy"))]
        for name, log in logs.items()
    }
    if not any(losses.values()):
        return ""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title(f"training loss, mean of {SMOOTHED} steps", loc="left", fontsize=10)
    right.set_title("validation accuracy, %", loc="left", fontsize=10)
    for index, name in enumerate(logs):
        look: dict[str, object] = {"color": CURVES[index % len(CURVES)], "linestyle": STYLES[index % len(STYLES)]}
        look |= {"linewidth": 2, "clip_on": False, "label": name.replace("$", r"\$")}
        for part, points, axes in (("loss", _smooth(losses[name]), left), ("validation", accuracies[name], right)):
            if points:
                steps, values = zip(*points, strict=True)
                marker = "o" if part == "validation" else ""
                axes.plot(steps, values, gid=f"curve_{part}{index}", marker=marker, markersize=4, **look)
    for axes in (left, right):
        _plain(axes)
        axes.set_xlabel("step")
    keyed = right if any(accuracies.values()) else left
    for index, key in enumerate(keyed.legend(frameon=False).get_lines()):
        key.set_gid(f"curve_key{index}")
    ends = [f"{name} ends at {points[-1][1]:.1f} %" for name, points in accuracies.items() if points]
    return as_element(figure, f"Training curves. Validation accuracy: {', '.join(ends) or 'not measured'}")


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    smoothed = []
    for index, (step, _) in enumerate(points):
        recent = [value for _, value in points[max(0, index - SMOOTHED + 1) : index + 1]]
        smoothed.append((step, sum(recent) / len(recent)))
    return smoothed[:: max(1, len(points) // 300)]


def confusion_picture(method: Method, names: Sequence[str]) -> str:
    """Return the confusions of a method as an SVG element: percent of the times that a class was offered."""
    import numpy as np
    from matplotlib.figure import Figure

    chosen, offered = confusion(method.evaluations, len(names))
    classes = [c for c in range(len(names)) if offered[c].any()]
    share = 100 * (chosen / np.maximum(offered, 1))[np.ix_(classes, classes)]
    size = min(10.0, 3.0 + 0.2 * len(classes))
    figure = Figure(figsize=(size, 0.86 * size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    shown = [names[c][:28].replace("$", r"\$") for c in classes] if len(classes) <= 40 else []
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), shown, fontsize=7)
    axes.set(xlabel="answer", ylabel="truth")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.7, label="% of the times that the class was offered")
    right = ", ".join(f"{names[c]} {share[i, i]:.0f} %" for i, c in enumerate(classes[:40]))
    return as_element(figure, f"Confusions of {method.name}. Right answers by class: {right}")


def _plain(axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", clip_on=False)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
