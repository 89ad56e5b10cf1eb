"""The report of a benchmark's folder: table, CSV and figures (``dmgal bench report FOLDER``).

The commands that generate files of the documentation write and check theirs in the same way.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmgal.bench.matrix.figures import FIGURES, Form
from dmgal.bench.matrix.report import accuracy_table, as_csv, as_page, cost_table, load, rows_of
from dmgal.files import printable

FORMS: tuple[Form, ...] = ("svg", "png")
ROOT = Path(__file__).resolve().parents[2]
Files = Iterable[tuple[Path, str | bytes]]
"""Path below a folder, and content of each file."""


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of a command that generates files of the documentation."""

    check: bool = False
    """Write nothing. Exit with 1 if a file is stale."""
    root: Path = ROOT
    """Folder of the repository."""


def report_folder(folder: Path, check: bool) -> int:
    """Write the report of a benchmark and print its tables, or only name the files that are stale.

    Returns:
        The exit code: 1 if ``check`` finds a stale file, otherwise 0.
    """
    results = load(folder)
    rows = rows_of(results)
    files: dict[Path, str | bytes] = {
        Path("report.md"): as_page(results, f"Benchmark {results[0]['run_info']['experiment_name']}"),
        Path("report.csv"): as_csv(results),
    }
    if any(row.results for row in rows):
        for (name, draw), form, dark in itertools.product(FIGURES.items(), FORMS, (False, True)):
            files[Path(f"{name}_{'dark' if dark else 'light'}.{form}")] = draw(rows, form, dark)
    code = write_or_check(files.items(), folder, check, f"dmgal bench report {printable(str(folder))}")
    if not check:
        print(f"{accuracy_table(rows)}\n{cost_table(rows)}", end="")
    return code


def generate_docs(
    files_of: Callable[[Path], Files], argv: list[str] | None, description: str | None, command: str
) -> int:
    """Run a command that generates files of the documentation, and return the exit code.

    Args:
        files_of: returns the files of a repository.
        argv: arguments of the command.
        description: text of its ``--help``.
        command: command that writes the files.
    """
    options = tyro.cli(GeneratorOptions, args=argv, description=description)
    return write_or_check(files_of(options.root), options.root, options.check, command)


def write_or_check(files: Files, root: Path, check: bool, command: str) -> int:
    """Write generated files below a folder, or only name those that are stale, and return the exit code.

    Args:
        files: path below the root and content of each.
        root: folder of the files.
        check: write nothing, and return 1 if a file is stale.
        command: command that writes the files.
    """
    stale = False
    for path, content in files:
        file, data = root / path, content.encode() if isinstance(content, str) else content
        if file.exists() and file.read_bytes() == data:
            continue
        stale = True
        if check:
            print(f"{path} is stale. Run '{command}'.", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            print(f"written: {path}")
    return 1 if check and stale else 0
