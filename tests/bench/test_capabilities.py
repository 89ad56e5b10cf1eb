"""The committed capability table is what a fresh probe finds, and nothing in it fails."""

from __future__ import annotations

import json

import pytest

from dmgal.backbones.quantized import KINDS
from dmgal.bench import capabilities
from dmgal.bench.capabilities import PROBES, probe, subjects
from dmgal.bench.capability_table import STOCK, capability_rows
from dmgal.bench.docs_figures import NAMES, RESULTS
from dmgal.bench.matrix.report_folder import ROOT

CELLS = json.loads((ROOT / RESULTS / "capabilities.json").read_text())["cells"]
FAST = ("several", "merge", "weighted")


def test_every_adapter_and_column_is_in_the_table() -> None:
    assert set(CELLS) == set(subjects()) and len(CELLS) >= 19
    assert all(list(row) == list(PROBES) for row in CELLS.values())
    assert set(capabilities.LIMITS_OF_PEFT) <= {(name, column) for name in STOCK for column in PROBES}


def test_no_cell_fails() -> None:
    kinds = {cell.partition(":")[0] for row in CELLS.values() for cell in row.values()}
    assert kinds <= {"yes", "refused", "limit of PEFT"}


@pytest.mark.parametrize("column", FAST)
@pytest.mark.parametrize("name", ["dmgal_adapter", "side", "lora", "peft_dora"])
def test_table_is_current(name: str, column: str) -> None:
    assert probe(name, column) == CELLS[name][column]


@pytest.mark.slow
@pytest.mark.parametrize("column", PROBES)
@pytest.mark.parametrize("name", sorted(CELLS))
def test_whole_table_is_current(name: str, column: str) -> None:
    if column in capabilities.QUANTIZED:
        pytest.importorskip(KINDS[column.replace(" ", "_")].library, reason="needs dmgal[quantize]")
    assert probe(name, column) == CELLS[name][column]


def test_unexpected_errors_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: object) -> None:
        raise KeyError("gone")

    monkeypatch.setitem(PROBES, "merge", broken)
    assert probe("smga", "merge") == "fails: KeyError: 'gone'"


def test_reasons_are_numbered_once() -> None:
    cells = {
        "smga": {"merge": "refused: No.", "export": "yes"},
        "lora": {"merge": "refused: No.", "export": "fails: x"},
    }
    header, rows, reasons = capability_rows(cells, NAMES)
    assert header == ["adapter", "merge", "export"]
    assert rows == [[NAMES["smga"], "no (1)", "yes"], ["LoRA", "no (1)", "no (2)"]]
    assert reasons == ["1. No.", "2. x"]
