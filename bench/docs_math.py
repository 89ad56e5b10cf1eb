"""Equations of the documentation as MathML, which browsers draw without a script: a hook of mkdocs.

A page has inline equations between ``$`` and a backtick, and others in fenced blocks of the language ``math``. GitHub
draws the same source. An equation that cannot be converted ends the build.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r"\$<code>(.+?)</code>\$")
"""An inline equation in the HTML of a page."""


def on_config(config: Any) -> object:
    """Convert fenced blocks of the language ``math``."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences.setdefault("custom_fences", []).append({"name": "math", "class": "math", "format": block})
    return config


def on_page_content(content: str, **_: object) -> str:
    """Convert the inline equations of a page."""
    return INLINE.sub(lambda match: mathml(html.unescape(match[1])), content)


def block(source: str, *_: object, **__: object) -> str:
    """Return the HTML of a fenced block, which scrolls if it is too wide."""
    return f'<div style="overflow-x: auto; padding-block: 0.6em">{mathml(source, "block")}</div>'


def mathml(source: str, display: str = "inline") -> str:
    """Convert LaTeX to MathML.

    Raises:
        ValueError: the converter left a command as it is.
    """
    # The converter knows align*, which GitHub does not allow inside of a block.
    converted = convert(source.replace("{aligned}", "{align*}"), display=display)
    if "\\" in converted:
        raise ValueError(f"These equations have a command that latex2mathml does not know: {source}")
    # Browsers ignore the attributes of older MathML, and Chromium aligns the blocks in a cell by a value of its own.
    style = r'style="text-align: \1; text-align: -webkit-\1; padding-inline: 0.1em"'
    return re.sub(r'columnalign="(\w+)"', style, converted).replace("<mi />", "<mrow></mrow>")
