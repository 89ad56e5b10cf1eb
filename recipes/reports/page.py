"""Self-contained web page of a comparison: chart, table, each method paired with the first, and confusion tables."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from dmgal.episodes.evaluation.statistics import confusion
from dmgal.recipes.reports.comparison import Method, Pairing, differing_queries, over_seeds
from dmgal.recipes.reports.runs import Row, cells, headings
from dmgal.videos import VideoCatalog

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "dmgal", "font.size": 10}
"""Text stays text, and the same values give the same file."""
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
NOTES = (
    "Differences are to the first row, paired episode by episode. Intervals over episodes hold for these trained "
    "models and these classes only. The spread over seeds and the bootstrap over classes show how well a difference "
    "generalizes."
)


def as_page(rows: Sequence[Row], title: str, summary: str, notes: str, **sections: Any) -> str:
    """Return a complete HTML page with the ``sections`` of its template, ``pairings`` and ``confusions``."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    table = [cells(row, index == 0) for index, row in enumerate(rows)]
    values = {"title": title, "summary": summary, "notes": notes, "headings": headings(rows), "rows": table}
    return templates.get_template("page.html.j2").render(values, chart=as_svg(rows), **sections)


def comparison_page(
    rows: Sequence[Row], methods: Sequence[Method], pairings: Sequence[Pairing], catalog: VideoCatalog, summary: str
) -> str:
    """Return the page of a comparison."""
    return as_page(
        rows,
        "Runs on the same episodes",
        summary,
        NOTES,
        pairings=[_pairing(pairing, catalog) for pairing in pairings],
        confusions=[_confusion(method, catalog.class_names) for method in methods],
    )


def as_svg(rows: Sequence[Row]) -> str:
    """Return the chart as an SVG element without references to other files."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(SVG):
        chart(rows).savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    text = file.getvalue()
    return text[text.index("<svg") :]


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
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", clip_on=False)
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


def _pairing(pairing: Pairing, catalog: VideoCatalog) -> dict[str, Any]:
    over_episodes = f"{pairing.over_episodes.mean:+.1f} ± {pairing.over_episodes.half_width:.1f}"
    order = sorted(pairing.by_class.items(), key=lambda item: item[1][1] - item[1][0])
    return {
        "name": pairing.method.name,
        "first": pairing.first.name,
        "differences": [
            ("over episodes, these models and classes", over_episodes),
            ("over classes, had others been drawn", str(pairing.over_classes)),
            ("over training seeds", over_seeds(pairing)),
        ],
        "by_class": [
            (catalog.class_names[c], f"{first:.1f}", f"{ours:.1f}", f"{ours - first:+.1f}")
            for c, (ours, first) in order
        ],
        "episodes": [
            (found.episode, f"{found.difference:+.0f}")
            + tuple(query[key] for key in ("video", "class", "answer_of_first", "answer"))
            for found in pairing.disagreements
            for query in differing_queries(found, pairing, catalog)
        ],
    }


def _confusion(method: Method, names: Sequence[str]) -> dict[str, Any]:
    """Return the confusion table in percent of the times that a class was offered."""
    chosen, offered = confusion(method.evaluations, len(names))
    classes = [c for c in range(len(names)) if offered[c].any()]
    rows = [
        [names[c], *(f"{100 * chosen[c, d] / offered[c, d]:.0f}" if chosen[c, d] else "" for d in classes)]
        for c in classes
    ]
    return {"name": method.name, "head": ["", *(names[c] for c in classes)], "rows": rows}
