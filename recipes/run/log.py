"""The log of a run: one JSON line per step and per validation, and what can be read from it.

A killed run may leave an incomplete last line. Invalid lines are ignored.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmgal.errors import DmgalError
from dmgal.files import log_lines, reason


def complete_entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log without incomplete or invalid lines, such as a killed run leaves."""
    entries = []
    try:
        for line in log_lines(path) if os.path.lexists(path) else ():
            with suppress(ValueError, RecursionError):
                entries.append(json.loads(line))
    except OSError as error:
        raise DmgalError(
            "The log of this run cannot be read.",
            received=f"{path}: {reason(error)}",
            expected="the log.jsonl that dmgal train wrote",
            remedy="Copy the run again, or delete the log.",
        ) from error
    return [entry for entry in entries if isinstance(entry, dict) and _has_numbers(entry)]


def step_seconds(entries: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the time of each training step but the first, without reading data."""
    times = [entry["seconds"] for entry in entries if "seconds" in entry]
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(times) if later > earlier]


def validations(entries: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return step, accuracy in percent and half-width of each validation."""
    names = ("step", "validation_accuracy", "half_width")
    return [{name: entry.get(name) for name in names} for entry in entries if "validation_accuracy" in entry]


def _has_numbers(entry: Mapping[str, object]) -> bool:
    losses = entry.get("losses", {})
    numbers = [entry.get(name, 0) for name in ("step", "seconds", "peak_memory_mb")]
    return isinstance(losses, dict) and all(isinstance(one, int | float) for one in (*numbers, *losses.values()))
