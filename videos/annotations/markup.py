"""XML files that others may have made, read without a document type and within limits.

Entities, which can expand to any amount of text or name other files, are only declared in a document type. A file with
one is refused before its first declaration is read.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from ...files import MOST_DEPTH, read_text

MOST_XML = 2**26
"""Bytes of an XML file. CVAT writes about 200 for each frame of a track."""
MOST_ELEMENTS = 1_000_000


class _LimitedBuilder(ElementTree.TreeBuilder):
    def __init__(self) -> None:
        super().__init__()
        self._depth = self._num_elements = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type (<!DOCTYPE>), which may declare entities")

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        self._num_elements += 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_DEPTH} nested levels")
        if self._num_elements > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS:,} elements")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root element of a file.

    Raises:
        OSError: the file cannot be read, is not regular, is too large or is not UTF-8.
        ValueError: it is not XML, has a document type, or has too many or too deep elements.
    """
    parser = ElementTree.XMLParser(target=_LimitedBuilder())
    try:
        parser.feed(read_text(path, MOST_XML))
        root: ElementTree.Element = parser.close()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ValueError(f"no XML: line {line}, column {column + 1}: {error.msg.partition(':')[0]}") from error
    return root
