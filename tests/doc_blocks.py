"""Pages of the documentation, their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'( *)```(\w*)(?: +title="([^"]+)")? *')
SHELLS = ("bash", "sh")
PROMPT = "$ "
"""Start of a command in a block that also shows its output."""
PLACEHOLDER = "..."
"""Word that stands for arguments that a page leaves out."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: path of its page, relative to the repository.
        line: number of its first line in the page.
        language: word after the fence, or nothing.
        title: file that the block is the content of, or None.
        text: its content, without indentation.
    """

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line of a page, as words without comments and placeholders."""

    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


@cache
def pages() -> tuple[Path, ...]:
    """Return the README and every page below docs."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert len(found) > 10
    return tuple(found)


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Return the fenced blocks of a page in their order. A fence that is never closed fails."""
    found: list[Block] = []
    opened: tuple[re.Match[str], int] | None = None
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        fence = FENCE.fullmatch(line)
        if fence is None:
            continue
        if opened is None:
            opened = fence, number
            continue
        (indent, language, title), first = opened[0].groups(), opened[1] + 1
        text = "".join(f"{one.removeprefix(indent)}\n" for one in lines[first - 1 : number - 1])
        found.append(Block(page.relative_to(ROOT), first, language, title, text))
        opened = None
    assert opened is None, f"{page}:{opened and opened[1]}: this block is never closed"
    return tuple(found)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of a page that is in no fenced block."""
    fenced = {
        number for block in blocks(page) for number in range(block.line - 1, block.line + block.text.count("\n") + 1)
    }
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if number not in fenced:
            yield number, line


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each piece of code in the prose of a page, also one over two lines."""
    lines = dict(prose(page))
    for paragraph in re.finditer(r"(?:.*\S.*\n)+", "".join(f"{lines.get(n, '')}\n" for n in range(1, max(lines) + 1))):
        first = paragraph.string.count("\n", 0, paragraph.start()) + 1
        for code in re.finditer(r"`([^`]+)`", paragraph[0]):
            yield first + paragraph[0].count("\n", 0, code.start()), " ".join(code[1].split())


def shell_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each command of a block."""
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if block.language in SHELLS:
            yield number, line
        elif not block.language and line.startswith(PROMPT):
            yield number, line.removeprefix(PROMPT)


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page's blocks."""
    for block in blocks(page):
        for number, line in shell_lines(block):
            for part in line.split(" && "):
                if words := words_of(part):
                    yield Command(block.page, number, words)


def words_of(line: str) -> tuple[str, ...]:
    """Return the words of a command line, without comments and placeholders."""
    return tuple(word for word in shlex.split(line, comments=True) if word != PLACEHOLDER)
