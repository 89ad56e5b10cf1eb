"""Equations of the documentation become MathML."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmgal.bench import docs_math

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_inline_equations_are_converted() -> None:
    page = "<p>of <code>$HOME</code> and $<code>a &lt; b_t</code>$</p>"
    converted = docs_math.on_page_content(page)
    assert converted.startswith("<p>of <code>$HOME</code> and <math")
    assert "<msub><mi>b</mi><mi>t</mi></msub>" in converted


def test_blocks_of_several_lines_are_aligned() -> None:
    config = docs_math.on_config(SimpleNamespace(mdx_configs={}))
    [fence] = config.mdx_configs["pymdownx.superfences"]["custom_fences"]
    converted = fence["format"]("\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}")
    assert converted.count("<mtr>") == 2
    assert converted.count("text-align: right") == 2


def test_unknown_command_ends_the_build() -> None:
    with pytest.raises(ValueError, match="does not know"):
        docs_math.mathml(r"\unheardof{x}")


def test_every_equation_of_the_documentation_can_be_converted() -> None:
    pages = [path.read_text() for path in DOCS.rglob("*.md")]
    equations = [
        found for page in pages for found in re.findall(r"```math\n(.+?)```|\$`(.+?)`\$", page, flags=re.DOTALL)
    ]
    assert len(equations) > 100
    for block, inline in equations:
        assert "<math" in docs_math.mathml(block or inline)
