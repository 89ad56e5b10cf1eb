"""The comparison as text and as a page."""

from __future__ import annotations

import datetime
import re
from xml.etree import ElementTree

import pytest
import torch

from dmgal.episodes.evaluation import Estimate, Evaluation
from dmgal.recipes.reports.charts import as_svg, training_curves
from dmgal.recipes.reports.page import COLUMNS, as_page
from dmgal.recipes.reports.runs import HEADINGS, PROBE, Row, as_text

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, accuracy: float, trained: int) -> Row:
    right = torch.tensor([1.0] * round(1000 * accuracy) + [0.0] * round(1000 * (1 - accuracy)), dtype=torch.float64)
    evaluations = {"accuracy": Evaluation(right, "hash")}
    return Row(name, evaluations, Estimate(100 * accuracy - 40, 1.0), trained, 480_000, 90_000 if trained else 0)


ROWS = [row("frozen", 0.4, 0), row("one", 0.90, 23_000), row("two", 0.905, 23_400), row("<full>", 0.88, 500_000)]


def loaded(page: str) -> list[str]:
    """Return what a page would load from elsewhere."""
    return [
        one
        for one in re.findall(r"""(?:src|href)=["']?[^"'>]{1,12}|url\([^)]{1,12}|@import""", page)
        if not re.search(r"""["'(](data:|#)""", one)
    ]


def test_table_columns_are_aligned_and_complete():
    lines = as_text(ROWS).splitlines()
    assert len(lines) == len(ROWS) + 2 and len({len(line) for line in lines}) == 1
    assert all(heading in lines[0] for heading in HEADINGS)
    assert "+50.0 ± 1.0" in lines[3] and "4.8 %" in lines[3]


def test_page_is_complete_and_loads_nothing():
    page = as_page(ROWS, "a & b", "summary", "notes")
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "a &amp; b" in page and "&lt;full&gt;" in page and "<full>" not in page
    assert not loaded(page)
    assert all(f'data-label="{heading}"' in page for heading in ("accuracy %", "trained"))
    assert set(COLUMNS) == {*HEADINGS, PROBE}


def test_chart_marks_are_at_their_values_and_labels_do_not_overlap():
    picture = ElementTree.fromstring(as_svg(ROWS))
    marks = [group for group in picture.iter(f"{SVG}g") if group.get("id", "").startswith("mark")]
    circles = [tuple(map(float, mark.find(f"{SVG}path").get("d").split()[1:3])) for mark in marks]
    assert len(circles) == len(ROWS)
    width = float(picture.get("viewBox").split()[2])
    assert circles[0][0] < circles[1][0] < circles[3][0] < width  # more parameters stand further right
    assert circles[0][1] > circles[3][1] > circles[1][1] > circles[2][1]  # better ones stand higher
    labels = [text for text in picture.iter(f"{SVG}text") if any(text.text.startswith(r.name) for r in ROWS)]
    places = [(float(t.get("x")) - 60 * ("anchor: end" in t.get("style")), float(t.get("y"))) for t in labels]
    assert len(places) == len(ROWS)
    assert abs(places[1][1] - places[2][1]) >= 12 or abs(places[1][0] - places[2][0]) >= 60


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:2], ROWS[:1] * 2])
def test_chart_accepts_any_rows(rows):
    assert as_svg(rows).count('id="mark') == len(rows)


def test_chart_is_deterministic():
    picture = as_svg(ROWS)
    assert picture == as_svg(ROWS) and str(datetime.date.today().year) not in picture


def test_math_and_markup_are_escaped():
    page = as_page([row("a$b$ & <c>", 0.5, 10)], "title", "summary", "notes")
    assert page.count("a$b$ &amp; &lt;c&gt;") == 3  # table, label and description of the chart


def test_training_curves_skip_what_was_not_measured():
    log = [{"step": step, "loss": 1.0 / step} for step in range(1, 30)]
    log += [{"step": 30, "validation_accuracy": 50.0}, {"step": 31, "loss": float("nan")}]
    svg = training_curves({"a <b> $": log, "frozen": []})
    assert "a &lt;b&gt; $ ends at 50.0 %" in svg and svg.count('id="curve_loss') == 1
    ElementTree.fromstring(svg)
    assert training_curves({"frozen": []}) == ""
