"""Positions of the parts of a diagram, from its description. ``docs_diagrams`` explains the keys and draws it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BOXES = ("frozen", "trained", "plain")
KINDS = (*BOXES, "text", "op", "stack", "cells")
ARROWS = re.compile(r"\s(->|=>|\|>|\^>|_>)\s")
Point = tuple[float, float]

MARGIN = 18.0
TOP = 40.0
"""Height of the captions of both sides of the task boundary."""
BOTTOM = 40.0
"""Height of the legend."""
GAP, ROW_GAP, LANE = 28.0, 22.0, 18.0
"""Least distance of columns and of rows, and what a row's distance grows by for an arrow or a caption above it."""
BOUNDARY_GAP = 26.0
APPROACH = 15.0
"""Length of the last horizontal part of an arrow that changes rows."""


@dataclass
class Node:
    """One part. Its position is the center of its box or picture, captions of pictures are below."""

    kind: str
    lines: list[str]
    rows: list[str]
    column: int
    row: int
    x: float = 0.0
    y: float = 0.0
    half: float = 0.0
    """Half of the width, where arrows end."""

    @property
    def up(self) -> float:
        """Height above the center."""
        sizes = {"op": 11.0, "stack": 22.0, "cells": 5.5 * len(self.rows), "text": 10.0}
        return sizes.get(self.kind, 9.0 + 8.0 * len(self.lines))

    @property
    def down(self) -> float:
        """Height below the center, with the caption."""
        return self.up + (6.0 + 14.0 * len(self.lines) if self.kind in ("stack", "cells") else 0.0)

    @property
    def own_half(self) -> float:
        """Half of the width of the part alone, without the caption."""
        sizes = {"op": 11.0, "stack": 22.0, "cells": 5.5 * max((len(row) for row in self.rows), default=0)}
        text = max((text_width(line, 11 if index else 13) for index, line in enumerate(self.lines)), default=0.0) / 2
        return sizes.get(self.kind, text + (3.0 if self.kind == "text" else 11.0))

    @property
    def space(self) -> float:
        """Half of the width of the part and its caption."""
        is_picture = self.kind in ("stack", "cells")
        caption = max((text_width(line, 11) / 2 for line in self.lines), default=0.0) if is_picture else 0.0
        return max(self.own_half, caption)


@dataclass
class Layout:
    """Everything that is drawn."""

    width: float
    height: float
    nodes: dict[str, Node]
    edges: list[tuple[list[Point], str]]
    groups: list[tuple[str, tuple[float, float, float, float]]]
    boundary: float | None
    regions: list[str]


@dataclass(frozen=True)
class Edge:
    """One arrow."""

    start: str
    arrow: str
    end: str
    label: str


def text_width(text: str, size: float) -> float:
    """Estimate the width of a text, for fonts like Helvetica."""
    narrow, wide = "iljtfr.,:;|'()[] ·-", "mwMWQO@%→⊕"
    return size * sum(0.33 if c in narrow else 0.85 if c in wide else 0.67 if c.isupper() else 0.56 for c in text)


def layout(description: Mapping[str, Any]) -> Layout:
    """Place all parts of a description."""
    nodes, boundary = _nodes(description)
    edges = list(_edges(description["edges"]))
    groups: dict[str, list[str]] = {name: names.split() for name, names in description.get("groups", {}).items()}
    lefts, rights, end = _columns(nodes, edges, boundary)
    bottom = _rows(nodes, edges, groups)
    for node in nodes.values():
        node.x = (lefts[node.column] + rights[node.column]) / 2
        boxes = [other.own_half for other in nodes.values() if other.column == node.column and other.kind in BOXES]
        node.half = max(boxes) if node.kind in BOXES else node.own_half
    return Layout(
        width=end + MARGIN,
        height=bottom + BOTTOM,
        nodes=nodes,
        edges=[(list(_route(nodes, edge)), edge.label) for edge in edges],
        groups=[(caption, _frame([nodes[name] for name in names], caption)) for caption, names in groups.items()],
        boundary=None if boundary is None else lefts[boundary] - 30,
        regions=description.get("regions", ["each video alone", "one task"]),
    )


def _nodes(description: Mapping[str, Any]) -> tuple[dict[str, Node], int | None]:
    """Return the parts with their columns and rows, and the column behind the task boundary."""
    kinds = {name: (kind, content) for kind in KINDS for name, content in description.get(kind, {}).items()}
    nodes, boundary = {}, None
    for row, line in enumerate(description["grid"].strip().splitlines()):
        names = line.split()
        boundary = names.index("|") if "|" in names else boundary
        for column, name in enumerate(name for name in names if name != "|"):
            if name != ".":
                kind, content = kinds[name]
                lines = [content] if isinstance(content, str) else list(content)
                matrix = [cell for cell in lines if kind == "cells" and set(cell) <= set("#+.")]
                nodes[name] = Node(kind, lines[len(matrix) :], matrix, column, row)
    return nodes, boundary


def _edges(text: str) -> Iterator[Edge]:
    for line in text.strip().splitlines():
        chain, _, label = line.partition(" : ")
        parts = [part.strip() for part in ARROWS.split(chain)]
        for index in range(0, len(parts) - 2, 2):
            yield Edge(parts[index], parts[index + 1], parts[index + 2], label.strip() if index == 0 else "")


def _columns(
    nodes: Mapping[str, Node], edges: list[Edge], boundary: int | None
) -> tuple[list[float], list[float], float]:
    """Return the left and right end of each column, and that of the last."""
    count = 1 + max(node.column for node in nodes.values())
    spaces = [max(node.space for node in nodes.values() if node.column == column) for column in range(count)]
    gaps = [GAP] * count
    for edge in edges:
        start, end = nodes[edge.start], nodes[edge.end]
        if edge.arrow in ("->", "=>") and start.column < end.column:
            needed = text_width(edge.label, 11) + (22 if start.row == end.row else 12 + APPROACH)
            gaps[start.column] = max(gaps[start.column], needed - (spaces[start.column] - start.own_half) / 2)
    if boundary is not None:
        gaps[boundary - 1] += BOUNDARY_GAP
    lefts, rights, x = [], [], MARGIN
    for space, gap in zip(spaces, gaps, strict=True):
        lefts.append(x)
        rights.append(x + 2 * space)
        x += 2 * space + gap
    return lefts, rights, rights[-1]


def _rows(nodes: Mapping[str, Node], edges: list[Edge], groups: Mapping[str, list[str]]) -> float:
    """Set the height of each part, and return the lower end of the last row."""
    count = 1 + max(node.row for node in nodes.values())
    above = [0.0] * (count + 1)
    for edge in edges:
        rows = [nodes[name].row for name in (edge.start, edge.end)]
        if edge.arrow in ("^>", "_>"):
            at = min(rows) if edge.arrow == "^>" else max(rows) + 1
            above[at] = max(above[at], LANE + (6 if edge.label else 0))
    for names in groups.values():
        rows = [nodes[name].row for name in names]
        above[min(rows)] += LANE
        above[max(rows) + 1] += LANE / 2
    y, bottom = TOP, TOP
    for row in range(count):
        here = [node for node in nodes.values() if node.row == row]
        y = bottom + (ROW_GAP if row else 0) + above[row] + max(node.up for node in here)
        for node in here:
            node.y = y
        bottom = y + max(node.down for node in here)
    return bottom + above[count]


def _route(nodes: Mapping[str, Node], edge: Edge) -> Iterator[Point]:
    """Yield the corners of an arrow."""
    start, end = nodes[edge.start], nodes[edge.end]
    if edge.arrow in ("^>", "_>"):
        yield from _around(nodes, start, end, is_above=edge.arrow == "^>")
        return
    is_below = end.y > start.y
    if edge.arrow == "|>" or start.column == end.column:
        yield start.x, start.y + (start.down if is_below else -start.up)
    else:
        yield start.x + _sign(start, end) * start.half, start.y
    if edge.arrow == "|>":
        yield start.x, end.y
    if edge.arrow == "=>" or start.column == end.column:
        if start.column != end.column:
            yield end.x, start.y
        yield end.x, end.y + (-end.up if is_below else end.down)
        return
    side = end.x - _sign(start, end) * end.half
    if start.y != end.y and edge.arrow == "->":
        middle = end.x - _sign(start, end) * (max(end.half, end.space) + APPROACH)
        yield from ((middle, start.y), (middle, end.y))
    yield side, end.y


def _around(nodes: Mapping[str, Node], start: Node, end: Node, is_above: bool) -> Iterator[Point]:
    """Yield the corners of an arrow that passes all parts between its ends."""
    first, last = sorted((start.column, end.column))
    row = (min if is_above else max)(start.row, end.row)
    between = [node for node in nodes.values() if node.row == row and first <= node.column <= last]
    if is_above:
        lane = min(node.y - node.up for node in between) - 13
        yield from ((start.x, start.y - start.up), (start.x, lane), (end.x, lane), (end.x, end.y - end.up))
    else:
        lane = max(node.y + node.down for node in between) + 13
        yield from ((start.x, start.y + start.down), (start.x, lane), (end.x, lane), (end.x, end.y + end.down))


def _sign(start: Node, end: Node) -> int:
    return 1 if end.x >= start.x else -1


def _frame(nodes: list[Node], caption: str) -> tuple[float, float, float, float]:
    """Return the corner and the size of the frame around parts and its caption."""
    left, right = min(node.x - node.half for node in nodes) - 9, max(node.x + node.half for node in nodes) + 9
    top, bottom = min(node.y - node.up for node in nodes) - 20, max(node.y + node.down for node in nodes) + 9
    return left, top, max(right - left, text_width(caption, 11) + 18), bottom - top
