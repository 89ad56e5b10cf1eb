"""Links, anchors, file names and Python blocks of the documentation, checked without a network and without running."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from doc_blocks import ROOT, Block, blocks, inline_code, pages, prose

LANGUAGES = {"", "bash", "bibtex", "json", "math", "python", "sh", "text", "toml", "yaml"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FOLDERS = (
    "adapters",
    "backbones",
    "bench",
    "docs",
    "episodes",
    "examples",
    "recipes",
    "tests",
    "videos",
    "visualization",
)
FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*[\w]")
PLACEHOLDER = re.compile(r"\b(NAME|DATASET)\b")
"""A word in a path that stands for others."""
ENTRY_POINTS = "dmgal.plugins"
PYTHON = [block for page in pages() for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    broken = [f"line {number}: {target}" for number, target in links(page) if not resolves(page, target)]
    assert broken == []


def test_broken_links_are_found() -> None:
    page = ROOT / "README.md"
    assert len(list(links(page))) > 20
    assert resolves(page, "docs/data.md#segments-of-long-videos") and resolves(page, "https://example.org/nothing")
    assert not resolves(page, "docs/date.md") and not resolves(page, "docs/data.md#segment-of-long-videos")


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and the target of each link and picture of a page."""
    for number, line in prose(page):
        for match in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            yield number, match[1]


def resolves(page: Path, target: str) -> bool:
    """Return True if a file and an anchor exist. Addresses on the network are not looked up."""
    if re.match(r"https?://|mailto:", target):
        return True
    name, _, anchor = target.partition("#")
    path = page.parent / name if name else page
    if not path.exists() or (path.suffix != ".md" and anchor):
        return False
    if anchor.startswith("dmgal."):  # of the API reference
        return exists(anchor)
    return not anchor or anchor in anchors(path)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs and GitHub make them."""
    found: set[str] = set()
    for _, line in prose(page):
        if heading := re.fullmatch(r"#+ (.+)", line):
            text = unicodedata.normalize("NFKD", heading[1]).encode("ascii", "ignore").decode()
            slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())
            number = 1
            while (name := slug if number == 1 else f"{slug}_{number - 1}") in found:
                number += 1
            found.add(name)
    return found


def test_named_files_exist() -> None:
    missing = [
        f"{page.name}:{line} {name}"
        for page in pages()
        for line, code in inline_code(page)
        for name in re.findall(rf"^{FILE.pattern}$", code)
        if not (ROOT / name).exists() and not PLACEHOLDER.search(name)
    ]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load(re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text()))
    listed = set(names_in(config["nav"]))
    existing = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert existing - listed == set()


def names_in(entry: object) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from names_in(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from names_in(value)


def test_blocks_have_a_known_language() -> None:
    unknown = [str(block) for page in pages() for block in blocks(page) if block.language not in LANGUAGES]
    assert unknown == []


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_block_compiles_and_its_names_exist(block: Block) -> None:
    tree = ast.parse(block.text, filename=str(block))
    assert [name for name in names_used(tree, block) if not exists(name)] == []


def test_names_in_the_prose_exist() -> None:
    named = {
        match[0] for page in pages() for _, code in inline_code(page) if (match := re.match(r"dmgal(\.\w+)+", code))
    }
    assert len(named) > 10
    assert [name for name in sorted(named - {ENTRY_POINTS}) if not exists(name)] == []


def test_missing_names_are_found() -> None:
    code = "import dmgal.adapters\nfrom dmgal import DmgalConfig\nfrom dmgal.episodes import Sampler\ndmgal.adapter()"
    block = Block(Path("README.md"), 1, "python", None, code)
    missing = [name for name in names_used(ast.parse(code), block) if not exists(name)]
    assert missing == ["dmgal.episodes.Sampler", "dmgal.adapter"]
    with pytest.raises(SyntaxError):
        ast.parse("print(")


def names_used(tree: ast.Module, block: Block) -> Iterator[str]:
    """Yield modules that a block imports, names that it imports from ours, and attributes of ours."""
    shown = {Path(other.title).stem for other in blocks(ROOT / block.page) if other.title}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name not in shown)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module not in shown:
            ours = node.module.partition(".")[0] == "dmgal"
            yield from (f"{node.module}.{alias.name}" if ours else node.module for alias in node.names)
        elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("dmgal."):
            yield name


def exists(name: str) -> bool:
    """Return True if a module can be found, or if a name of ours is an attribute of one."""
    if not name.startswith("dmgal."):
        return find_spec(name.partition(".")[0]) is not None
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False
