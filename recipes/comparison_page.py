"""Web page of a comparison: the table, each method paired with the first, and confusion tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dmgal.episodes import VideoCatalog
from dmgal.episodes.paired import confusion
from dmgal.recipes.methods import Method, Pairing, differing_queries, over_seeds
from dmgal.recipes.report import as_page
from dmgal.recipes.table import Row

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
