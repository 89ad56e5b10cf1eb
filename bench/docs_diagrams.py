"""Generator of the diagrams of the methods, from ``docs/figures/methods/*.yaml``.

    python -m dmgal.bench.docs_diagrams            # draw every diagram again
    python -m dmgal.bench.docs_diagrams --check    # exit with 1 and name each file that is stale

A description has these keys:

- ``title``: one sentence for readers who do not see the picture.
- ``grid``: rows of parts by their names. A dot is an empty cell, a bar the task boundary.
- ``frozen``, ``trained``, ``plain``: boxes, each a text or its lines. ``plain`` has no weights.
- ``text`` and ``op``: a text without a box, and a sign in a circle.
- ``stack``: a video, with its caption. ``cells``: a matrix, rows of ``#``, ``+`` and ``.``, then its caption.
- ``edges``: one line each, ``a -> b -> c : label``, with the label at the first arrow. ``=>`` enters from above or
  below, ``|>`` leaves upwards or downwards, ``^>`` passes above, ``_>`` below.
- ``groups``: frames around the named parts, by their captions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from dmgal.bench.diagram_layout import Layout, Node, layout, text_width
from dmgal.bench.matrix.report_folder import generate_docs
from dmgal.files import parse_yaml, read_mapping

FOLDER = Path("docs", "figures", "methods")
MARKER = (
    '<defs><marker id="a" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" '
    'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0.5 8 4 0 7.5z"/></marker></defs>'
)
"""The head of an arrow."""
REMEDY = "Correct the description, see dmgal.bench.docs_diagrams."
LEGEND = {"frozen": "frozen", "trained": "trained", "plain": "no weights"}
STYLE = """
text{font:13px Helvetica,Arial,sans-serif;fill:#1f2328;text-anchor:middle}
.s{font-size:11px;fill:#57606a}.b{font-size:12px;font-weight:bold;fill:#b35900}.l{text-anchor:start}
.paper,.plain{fill:#fff}.plain,.op{stroke:#8c959f}.op{fill:#fff}
.frozen{fill:#e7eaee;stroke:#afb8c1}.trained{fill:#d5e8ff;stroke:#2f7dd1}
.edge{fill:none;stroke:#6e7781;stroke-width:1.3}.head{fill:#6e7781}
.boundary{stroke:#d95f02;stroke-width:2;stroke-dasharray:7 5}
.group{fill:none;stroke:#8c959f;stroke-dasharray:3 3}
.c0{fill:#fff;stroke:#8c959f}.c1{fill:#bcd8f8;stroke:#8c959f}.c2{fill:#2f7dd1;stroke:#8c959f}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9aa4ae}.b{fill:#f0883e}
.paper,.plain,.op{fill:#161a20}.plain,.op{stroke:#7a838d}
.frozen{fill:#2b3036;stroke:#59616b}.trained{fill:#173a63;stroke:#4c9aef}
.edge{stroke:#8b949e}.head{fill:#8b949e}.boundary{stroke:#f0883e}
.c0{fill:#161a20}.c1{fill:#274b77}.c2{fill:#4c9aef}}
""".strip()


def main(argv: list[str] | None = None) -> int:
    """Draw or check every diagram, and return the exit code."""
    return generate_docs(drawn, argv, __doc__, "python -m dmgal.bench.docs_diagrams")


def drawn(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path and the content of each diagram."""
    for path in sorted((root / FOLDER).glob("*.yaml")):
        description = read_mapping(path, "A diagram of the documentation cannot be drawn.", REMEDY, parse_yaml)
        yield FOLDER / f"{path.stem}.svg", svg(description)


def svg(description: dict[str, Any]) -> str:
    """Draw a diagram."""
    plan = layout(description)
    width, height = round(plan.width), round(plan.height)
    title, size = escape(description["title"]), f'width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        MARKER,
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
        *_regions(plan),
        *(part for caption, box in plan.groups for part in _group(caption, box)),
        *(part for points, label in plan.edges for part in _edge(points, label)),
        *(part for node in plan.nodes.values() for part in _node(node)),
        *_legend(plan),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _text(x: float, y: float, content: str, style: str = "") -> str:
    attribute = f' class="{style}"' if style else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{attribute}>{escape(content)}</text>'


def _box(style: str, x: float, y: float, width: float, height: float, radius: int = 5) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" rx="{radius}"'
    return f'<rect class="{style}" x="{x:.0f}" y="{y:.0f}" {size}/>'


def _regions(plan: Layout) -> Iterator[str]:
    """Draw the task boundary, and name what is before and after it."""
    edges = [0.0, *([] if plan.boundary is None else [plan.boundary]), plan.width]
    for caption, left, right in zip(plan.regions, edges[:-1], edges[1:], strict=False):
        yield _text((left + right) / 2, 20, caption, "b")
    if plan.boundary is not None:
        yield f'<path class="boundary" d="M{plan.boundary:.0f} 10V{plan.height - 12:.0f}"/>'


def _group(caption: str, box: tuple[float, float, float, float]) -> Iterator[str]:
    x, y, width, height = box
    yield _box("group", x, y, width, height, 8)
    yield _text(x + 8, y + 13, caption, "s l")


def _edge(points: list[tuple[float, float]], label: str) -> Iterator[str]:
    """Draw an arrow with rounded corners, and its label where it starts."""
    path = [f"M{points[0][0]:.0f} {points[0][1]:.0f}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(6.0, *(max(abs(corner[i] - end[i]) for i in (0, 1)) / 2 for end in (before, after)))
        start, stop = (_towards(corner, end, radius) for end in (before, after))
        path.append(f"L{start[0]:.0f} {start[1]:.0f}Q{corner[0]:.0f} {corner[1]:.0f} {stop[0]:.0f} {stop[1]:.0f}")
    path.append(f"L{points[-1][0]:.0f} {points[-1][1]:.0f}")
    yield f'<path class="edge" d="{"".join(path)}" marker-end="url(#a)"/>'
    if label:
        (x, y), (_, next_y) = points[:2]
        yield _text(x + 8, y - 5 if y == next_y else (y + next_y) / 2 + 4, label, "s l")


def _towards(point: tuple[float, float], end: tuple[float, float], by: float) -> tuple[float, float]:
    """Move a point horizontally or vertically towards another one."""
    moved = [value + max(-by, min(by, goal - value)) for value, goal in zip(point, end, strict=True)]
    return moved[0], moved[1]


def _node(node: Node) -> Iterator[str]:
    x, y = node.x, node.y
    if node.kind in ("stack", "cells"):
        yield from _stack(node) if node.kind == "stack" else _cells(node)
        for index, line in enumerate(node.lines):
            yield _text(x, y + node.up + 14 + 14 * index, line, "s")
        return
    if node.kind == "op":
        yield f'<circle class="op" cx="{x:.0f}" cy="{y:.0f}" r="{node.half:.0f}"/>'
    elif node.kind != "text":
        yield _box(node.kind, x - node.half, y - node.up, 2 * node.half, 2 * node.up)
    top = y - 8 * (len(node.lines) - 1) + 4.5
    for index, line in enumerate(node.lines):
        yield _text(x, top + 16 * index, line, "s" if index else "")


def _stack(node: Node) -> Iterator[str]:
    """Draw the frames of a video."""
    for shift in (7, 0, -7):
        yield _box("c1" if shift == -7 else "c0", node.x - 14 + shift, node.y - 14 - shift, 28, 28, 2)


def _cells(node: Node) -> Iterator[str]:
    """Draw a matrix."""
    left, top = node.x - node.half, node.y - node.up
    for row, line in enumerate(node.rows):
        for column, cell in enumerate(line):
            yield _box(f"c{'.+#'.index(cell)}", left + 11 * column, top + 11 * row, 11, 11, 0)


def _legend(plan: Layout) -> Iterator[str]:
    """Name the kinds of boxes in the picture."""
    x, y = 16.0, plan.height - 22
    for kind, name in LEGEND.items():
        if any(node.kind == kind for node in plan.nodes.values()):
            yield _box(kind, x, y, 14, 11, 2)
            yield _text(x + 20, y + 9.5, name, "s l")
            x += 38 + text_width(name, 11)


if __name__ == "__main__":
    sys.exit(main())
