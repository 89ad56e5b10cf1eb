"""Self-contained web pages of one family of templates: a comparison, the demo, and the report of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from dmgal.recipes.reports.charts import as_svg, confusion_picture
from dmgal.recipes.reports.comparison import Method, Pairing, differing_queries, over_seeds, signed, worst_confusions
from dmgal.recipes.reports.films import FRAMES, PIXELS
from dmgal.recipes.reports.runs import Comparison, Row, cells, headings
from dmgal.recipes.run.evaluation import Protocol
from dmgal.recipes.run.text import text_line
from dmgal.videos import VideoCatalog

CONFUSIONS_SHOWN = 8
COLUMNS = {
    "method": "name of the run",
    "accuracy %": "share of right answers, with its 95 % interval over the test tasks",
    "difference": "points over the first row on the same tasks. If the interval excludes 0, chance does not explain it",
    "reversal %": "accuracy if the only two classes are a motion and its time reversal. Chance is 50 %",
    "4-way rev. %": "accuracy on two such pairs. A model that ignores the order of frames cannot exceed 50 %",
    "trained": "number of trained parameters",
    "of tower": "their share of the image encoder",
    "peak MB": "peak memory of the training process",
    "s/step": "median seconds per training step",
    "saved": "size of the file with the trained weights",
    "probe %": "accuracy of a ridge probe on the mean frames of the same encoder",
}
"""Meaning of the columns."""
NOTES = (
    "Differences are to the first row, paired episode by episode. Intervals over episodes hold for these trained "
    "models and these classes only. The spread over seeds and the bootstrap over classes show how well a difference "
    "generalizes."
)


def render(template: str, **values: object) -> str:
    """Return a complete HTML page of a template in this folder, which loads nothing."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template(template).render(film_frames=FRAMES, film_pixels=PIXELS, **values)


def results_of(rows: Sequence[Row]) -> dict[str, object]:
    """Return the table and the chart of a comparison, for a template."""
    table = [cells(row, index == 0) for index, row in enumerate(rows)]
    shown = headings(rows)
    used = [c for c in range(len(shown)) if any(row[c] != "-" for row in table)]
    names = [shown[c] for c in used]
    return {
        "headings": names,
        "rows": [[row[c] for c in used] for row in table],
        "columns": {name: COLUMNS[name] for name in names},
        "chart": as_svg(rows),
    }


def as_page(rows: Sequence[Row], title: str, summary: str, notes: str, **sections: object) -> str:
    """Return the page of a comparison with the ``sections`` of its template, ``pairings`` and ``confusions``."""
    values = {"title": title, "summary": summary, "notes": notes, **results_of(rows)}
    return render("comparison.html.j2", **values, **sections)


def comparison_page(found: Comparison, protocol: Protocol, is_inexact: bool) -> str:
    """Return the page of a comparison. ``is_inexact``: states were stored as float16."""
    text = found.rows[0].text
    ways, shots = protocol.ways_and_shots(found.recipe)
    episodes = len(found.rows[0].evaluations["accuracy"].accuracies)
    summary = f"{ways}-way {shots}-shot accuracy on {protocol.split} classes, {episodes:,} episodes, the same for all."
    summary += "" if text is None else f" Text: {text_line(text)}."
    summary += " INEXACT: states were stored as float16." if is_inexact else ""
    return as_page(
        found.rows,
        "Runs on the same episodes",
        summary,
        NOTES,
        pairings=[pairing_section(pairing, found.catalog) for pairing in found.pairings],
        confusions=[confusion_section(method, found.catalog.class_names) for method in found.methods],
    )


def pairing_section(pairing: Pairing, catalog: VideoCatalog) -> dict[str, object]:
    """Return the paired comparison of a method with the first one, for a template."""
    order = sorted(pairing.by_class.items(), key=lambda item: item[1][1] - item[1][0])
    return {
        "name": pairing.method.name,
        "first": pairing.first.name,
        "differences": [
            ("over episodes, these models and classes", signed(pairing.over_episodes)),
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


def confusion_section(method: Method, names: Sequence[str]) -> dict[str, object]:
    """Return the picture of a method's confusions and the most frequent ones, for a template."""
    worst = worst_confusions(method, len(names), CONFUSIONS_SHOWN)
    rows = [(names[c], names[other], f"{100 * share:.0f} %") for c, other, share, _ in worst]
    return {"name": method.name, "picture": confusion_picture(method, names), "rows": rows}
