"""Generated tables and figure of the documentation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dmgal.bench import docs_recipe, docs_tables
from dmgal.bench.docs_figures import RESULTS
from dmgal.bench.matrix.report_folder import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a copy of the pages, the figures and the results."""
    for path in (*docs_tables.PAGES, *docs_tables.FIGURES, docs_recipe.PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    return tmp_path


@pytest.mark.parametrize("page", docs_tables.PAGES, ids=str)
def test_tables_are_current(page: Path) -> None:
    text = (ROOT / page).read_text()
    assert docs_tables.with_tables(ROOT, text) == text


def test_every_table_is_shown() -> None:
    pages = "".join((ROOT / page).read_text() for page in docs_tables.PAGES)
    assert {match[2] for match in docs_tables.MARKED.finditer(pages)} == set(docs_tables.TABLES)


def test_check_passes_on_the_repository() -> None:
    pytest.importorskip("matplotlib")
    assert docs_tables.main(["--check"]) == 0


def test_check_names_the_files_of_a_changed_number(repository: Path, monkeypatch, capsys) -> None:
    drawn = {path: lambda root, path=path: (root / path).read_bytes() for path in docs_tables.FIGURES}
    monkeypatch.setattr(docs_tables, "FIGURES", drawn)
    arguments = ["--root", str(repository)]
    assert docs_tables.main([*arguments, "--check"]) == 0
    path = repository / RESULTS / "demo.json"
    report = json.loads(path.read_text())
    report["summary"]["smga"]["accuracy"]["mean"] += 1
    path.write_text(json.dumps(report))
    assert docs_tables.main([*arguments, "--check"]) == 1
    errors = capsys.readouterr().err
    assert "README.md is stale" in errors and "docs/results.md is stale" in errors and "performance" not in errors
    assert docs_tables.main(arguments) == 0
    assert docs_tables.main([*arguments, "--check"]) == 0
