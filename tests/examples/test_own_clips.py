"""The example notebook: it runs, its committed outputs are complete, and its answers are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_clips.ipynb"


def outputs(notebook: Any) -> str:
    """Return the printed text of a notebook, and the kinds of its other outputs."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or " ".join(output.data) for output in found)


def check(notebook: Any) -> None:
    text = outputs(notebook)
    assert text.count("image/jpeg") == 2 and "the same answers" in text
    assert "100% of 8 clips have the right best action" in text


def test_committed_notebook_has_its_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="install dmgal[test]")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    check(notebook)
    assert "/tmp/" not in NOTEBOOK.read_text() and NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="install dmgal[test]")
    nbclient = pytest.importorskip("nbclient", reason="install dmgal[test]")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    check(notebook)
