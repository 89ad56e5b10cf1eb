"""Self-contained web page of a comparison: chart, table, each method paired with the first, and confusion tables.

The chart shows accuracy against trained parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from dmgal.episodes.evaluation.statistics import confusion
from dmgal.recipes.reports.comparison import Method, Pairing, differing_queries, over_seeds
from dmgal.recipes.reports.table import HEADINGS, Row, cells
from dmgal.videos import VideoCatalog

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 64
LETTER_WIDTH, LINE_HEIGHT = 7.5, 16

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --ink: #1c2430; --soft: #66707d; --line: #d5dae1; --mark: #2563a8; --page: #ffffff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8ebf0; --soft: #9aa4b1; --line: #39424e; --mark: #7db2ec; --page: #14181d; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }}
figure {{ margin: 2rem 0; }}
svg {{ width: 100%; height: auto; }}
svg text {{ fill: var(--ink); font: 13px system-ui, sans-serif; }}
svg .soft {{ fill: var(--soft); }}
svg line {{ stroke: var(--line); }}
svg .mark {{ stroke: var(--mark); fill: var(--mark); stroke-width: 2; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }}
th, td {{ text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; }}
p, figcaption {{ color: var(--soft); max-width: 45rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
<figure>{chart}<figcaption>{caption}</figcaption></figure>
<div class="wide">{table}</div>
<p>{notes}</p>
{more}
</body>
</html>
"""


def as_page(rows: Sequence[Row], title: str, summary: str, notes: str, more: str = "") -> str:
    """Return a complete HTML page. ``more`` is HTML for its end."""
    return PAGE.format(
        title=escape(title),
        summary=escape(summary),
        chart=chart(rows),
        caption="Accuracy on novel classes, with its 95 % interval over episodes, against the number of trained "
        "parameters (logarithmic; 0 at the left edge).",
        table=table(rows),
        notes=escape(notes),
        more=more,
    )


def table(rows: Sequence[Row]) -> str:
    """Return the table of ``recipes/reports/table.py`` as HTML."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells(row, index == 0)) + "</tr>"
        for index, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def chart(rows: Sequence[Row]) -> str:
    """Return inline SVG with a mark and an interval per row."""
    scale = _Scale(rows)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="accuracy against trained parameters">']
    for percent in range(scale.lowest, scale.highest + 1, scale.step):
        y = scale.y(percent)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    for power in range(scale.first_power, scale.last_power + 1):
        label = "0" if power == scale.first_power else f"{10**power:,}"
        parts.append(_note(scale.x_of_power(power), HEIGHT - BOTTOM + 22, label))
    parts.append(_note((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, "trained parameters"))
    taken: list[_Box] = []
    parts += [_mark(row, scale, taken) for row in rows]
    return "".join([*parts, "</svg>"])


def _note(x: float, y: float, text: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>'


def _mark(row: Row, scale: _Scale, taken: list[_Box]) -> str:
    """Return a point with its interval and a label, placed so that it covers no earlier label if possible."""
    estimate = row.evaluations["accuracy"].accuracy
    x, y = scale.x(row.trained_parameters), scale.y(estimate.mean)
    low, high = scale.y(estimate.mean - estimate.half_width), scale.y(estimate.mean + estimate.half_width)
    label = f"{row.name} {estimate.mean:.1f} %"
    box = next((box for box in _places(x, y, label) if not any(box.covers(other) for other in taken)), None)
    box = box or next(iter(_places(x, y, label)))
    taken.append(box)
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
        f'<text x="{box.left:.1f}" y="{box.bottom:.1f}">{escape(label)}</text>'
    )


@dataclass(frozen=True)
class _Box:
    """Bounding box of a label."""

    left: float
    bottom: float
    width: float

    def covers(self, other: _Box) -> bool:
        beside = self.left + self.width < other.left or other.left + other.width < self.left
        return not beside and abs(self.bottom - other.bottom) < LINE_HEIGHT


def _places(x: float, y: float, label: str) -> Iterator[_Box]:
    """Yield label boxes inside the picture, right and left of a point, at growing vertical distance."""
    width = LETTER_WIDTH * len(label)
    for shift in (4, -12, 20, -28, 36):
        for left in (x + 10, x - 10 - width):
            if left >= 0 and left + width <= WIDTH:
                yield _Box(left, y + shift, width)


class _Scale:
    """Conversion of parameters and percent to coordinates of the chart."""

    def __init__(self, rows: Sequence[Row]) -> None:
        means = [row.evaluations["accuracy"].accuracy.mean for row in rows]
        spread = max(means) - min(means)
        self.step = 10 if spread > 25 else 5
        self.lowest = max(0, math.floor((min(means) - 4) / self.step) * self.step)
        self.highest = min(100, math.ceil((max(means) + 4) / self.step) * self.step)
        powers = [math.log10(row.trained_parameters) for row in rows if row.trained_parameters] or [1.0]
        self.first_power = math.floor(min(powers)) - 1  # stands for 0
        self.last_power = math.ceil(max(powers))

    def x_of_power(self, power: float) -> float:
        share = (power - self.first_power) / (self.last_power - self.first_power)
        return LEFT + 20 + share * (WIDTH - LEFT - RIGHT - 40)

    def x(self, parameters: int) -> float:
        return self.x_of_power(math.log10(parameters) if parameters else self.first_power)

    def y(self, percent: float) -> float:
        share = (percent - self.lowest) / (self.highest - self.lowest)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


NOTES = (
    "Differences are to the first row, paired episode by episode. Intervals over episodes hold for these trained "
    "models and these classes only. The spread over seeds and the bootstrap over classes show how well a difference "
    "generalizes."
)


def comparison_page(
    rows: Sequence[Row], methods: Sequence[Method], pairings: Sequence[Pairing], catalog: VideoCatalog, summary: str
) -> str:
    """Return a self-contained HTML page."""
    sections = [_pairing(pairing, catalog) for pairing in pairings]
    sections += [_confusion(method, catalog.class_names) for method in methods]
    return as_page(rows, "Runs on the same episodes", summary, NOTES, "\n".join(sections))


def _pairing(pairing: Pairing, catalog: VideoCatalog) -> str:
    over_episodes = f"{pairing.over_episodes.mean:+.1f} ± {pairing.over_episodes.half_width:.1f}"
    numbers = [
        ["over episodes, these models and classes", over_episodes],
        ["over classes, had others been drawn", str(pairing.over_classes)],
        ["over training seeds", over_seeds(pairing)],
    ]
    order = sorted(pairing.by_class.items(), key=lambda item: item[1][1] - item[1][0])
    by_class = [
        [catalog.class_names[c], f"{first:.1f}", f"{ours:.1f}", f"{ours - first:+.1f}"] for c, (ours, first) in order
    ]
    episodes = [
        [f"{found.episode}", f"{found.difference:+.0f}", *(query[key] for key in ("video", "class"))]
        + [query["answer_of_first"], query["answer"]]
        for found in pairing.disagreements
        for query in differing_queries(found, pairing, catalog)
    ]
    name, first_name = pairing.method.name, pairing.first.name
    return "\n".join(
        [
            f"<h2>{escape(name)} minus {escape(first_name)}</h2>",
            _table(["difference, points", "with 95 % interval"], numbers),
            "<h3>By class of the query, accuracy in %</h3>",
            _table(["class", first_name, name, "difference"], by_class),
            "<h3>Episodes in which they disagree most</h3>",
            _table(["episode", "points", "query", "class", f"answer of {first_name}", f"answer of {name}"], episodes),
        ]
    )


def _confusion(method: Method, names: Sequence[str]) -> str:
    """Return the confusion table: rows are true classes, columns answers, in percent of the times offered."""
    chosen, offered = confusion(method.evaluations, len(names))
    classes = [c for c in range(len(names)) if offered[c].any()]
    cells = [
        [names[c], *(f"{100 * chosen[c, d] / offered[c, d]:.0f}" if chosen[c, d] else "" for d in classes)]
        for c in classes
    ]
    heading = f"<h2>{escape(method.name)}: what is taken for what</h2>"
    explanation = "<p>Rows are the truth, columns the answers: percent of the times that the class was offered.</p>"
    return "\n".join([heading, explanation, _table(["", *(names[c] for c in classes)], cells)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'
