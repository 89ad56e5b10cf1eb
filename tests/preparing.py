"""Runs ``dmgal prepare`` and reads what it leaves, for the tests of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from dmgal.cli import main


def prepare(*words: str | Path) -> int:
    return main(["prepare", *map(str, words), "--quiet", "--workers", "1"])


def report(out: Path) -> dict[str, tuple[int, str]]:
    with (out / "report.csv").open(newline="") as file:
        return {row["video"]: (int(row["frames"]), row["problem"]) for row in csv.DictReader(file)}


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())
