"""Diagrams of the methods."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from dmgal.bench import docs_diagrams
from dmgal.bench.diagram_layout import Layout, Node, layout
from dmgal.bench.matrix.report_folder import ROOT

DESCRIPTIONS = sorted((ROOT / docs_diagrams.FOLDER).glob("*.yaml"))
WIDEST = 880
SMALL = """
title: Two boxes.
grid: |
  a | b
  . | c
trained: {a: [weights, of a]}
plain: {b: b}
text: {c: logits}
edges: |
  a -> b : V, T
  b -> c
"""


def laid_out(path: Path) -> Layout:
    return layout(yaml.safe_load(path.read_text()))


def overlap(one: Node, other: Node) -> bool:
    return (
        abs(one.x - other.x) < max(one.half, one.space) + max(other.half, other.space)
        and one.y - one.up < other.y + other.down
        and other.y - other.up < one.y + one.down
    )


def test_boxes_share_a_row_and_the_boundary_is_between_them() -> None:
    plan = layout(yaml.safe_load(SMALL))
    a, b, c = (plan.nodes[name] for name in "abc")
    assert a.y == b.y and b.x == c.x
    assert plan.boundary is not None and a.x + a.half < plan.boundary < b.x - b.half
    assert plan.edges[0] == ([(a.x + a.half, a.y), (b.x - b.half, b.y)], "V, T")
    assert plan.edges[1] == ([(b.x, b.y + b.down), (c.x, c.y - c.up)], "")


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.stem)
def test_nothing_overlaps_and_arrows_pass_no_part(path: Path) -> None:
    plan = laid_out(path)
    nodes = list(plan.nodes.values())
    assert plan.width <= WIDEST
    assert [(a, b) for i, a in enumerate(nodes) for b in nodes[:i] if overlap(a, b)] == []
    for points, _ in plan.edges:
        for start, end in pairwise(points):
            assert start[0] == pytest.approx(end[0]) or start[1] == pytest.approx(end[1])
            middles = [tuple(s + (e - s) * share for s, e in zip(start, end, strict=True)) for share in (0.1, 0.5, 0.9)]
            crossed = [n for x, y in middles for n in nodes if abs(x - n.x) < n.half - 1 and abs(y - n.y) < n.up - 1]
            assert crossed == []


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.stem)
def test_diagram_is_current_and_shown(path: Path) -> None:
    drawing = path.with_suffix(".svg").read_text()
    assert docs_diagrams.svg(yaml.safe_load(path.read_text())) == drawing
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    pages = (ROOT / "docs" / "methods").glob("*.md")
    assert any(f"methods/{path.stem}.svg" in page.read_text() for page in pages)


def test_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / docs_diagrams.FOLDER
    folder.mkdir(parents=True)
    shutil.copy(DESCRIPTIONS[0], folder)
    arguments = ["--root", str(tmp_path)]
    assert docs_diagrams.main([*arguments, "--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert docs_diagrams.main(arguments) == 0
    assert docs_diagrams.main([*arguments, "--check"]) == 0
