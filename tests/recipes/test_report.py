"""The comparison as text and as a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

from dmgal.episodes.evaluation import Estimate, Evaluation
from dmgal.recipes.reports.page import WIDTH, as_page, chart
from dmgal.recipes.reports.table import HEADINGS, Row, as_text


def row(name: str, accuracy: float, trained: int) -> Row:
    right = torch.tensor([1.0] * round(1000 * accuracy) + [0.0] * round(1000 * (1 - accuracy)), dtype=torch.float64)
    evaluations = {"accuracy": Evaluation(right, "hash")}
    return Row(name, evaluations, Estimate(100 * accuracy - 40, 1.0), trained, 480_000, 90_000 if trained else 0)


ROWS = [row("frozen", 0.4, 0), row("one", 0.90, 23_000), row("two", 0.905, 23_400), row("<full>", 0.88, 500_000)]


def test_table_columns_are_aligned_and_complete():
    lines = as_text(ROWS).splitlines()
    assert len(lines) == len(ROWS) + 2 and len({len(line) for line in lines}) == 1
    assert all(heading in lines[0] for heading in HEADINGS)
    assert "+50.0 ± 1.0" in lines[3] and "4.8 %" in lines[3]


def test_page_is_complete_and_loads_nothing():
    page = as_page(ROWS, "a & b", "summary", "notes")
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "a &amp; b" in page and "&lt;full&gt;" in page and "<full>" not in page
    assert not re.search(r"(src|href)=|url\(|@import", page)


def test_chart_marks_are_at_their_values_and_labels_do_not_overlap():
    picture = ElementTree.fromstring(chart(ROWS))
    circles = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in picture.iter("circle")]
    assert len(circles) == len(ROWS)
    assert circles[0][0] < circles[1][0] < circles[3][0] < WIDTH  # more parameters stand further right
    assert circles[0][1] > circles[3][1] > circles[1][1] > circles[2][1]  # better ones stand higher
    labels = [text for text in picture.iter("text") if any(text.text.startswith(r.name) for r in ROWS)]
    places = [(float(text.get("x")), float(text.get("y"))) for text in labels]
    assert len(places) == len(ROWS)
    assert abs(places[1][1] - places[2][1]) >= 16 or abs(places[1][0] - places[2][0]) >= 60


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:2], ROWS[:1] * 2])
def test_chart_accepts_any_rows(rows):
    assert chart(rows).count("<circle") == len(rows)
