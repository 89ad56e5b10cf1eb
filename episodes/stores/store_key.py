"""The key of a part of a store: all settings that determine its content, as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from ...errors import DmgalError
from ..listing import listed

KEY = "key.json"
REMEDY = "Build it: run dmgal store with the options of this run. Only missing or changed videos are decoded."


def claim(part: Path, description: dict[str, Any]) -> None:
    """Write the key of an empty part, or raise DmgalError if the part has other content."""
    if (part / KEY).exists():
        refuse_other(part, read_key(part), description)
        return
    foreign_files = sorted(path.name for path in part.iterdir() if not path.name.startswith("."))
    if foreign_files:
        received = f"{listed(foreign_files)}, but no {KEY}"
        refuse(f"Cannot build a store in {part}.", received, "an empty folder", "Choose an empty folder.")
    unfinished = part / f".{KEY}.part"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(description, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, part / KEY)


def read_key(part: Path) -> dict[str, Any]:
    """Return the key of a part, or an empty one if it cannot be read.

    Raises:
        DmgalError: there is no store.
    """
    try:
        key = json.loads((part / KEY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(f"There is no store in {part}.", f"no {KEY}", "a folder created by dmgal store", REMEDY)
    except ValueError:
        key = None
    return key if isinstance(key, dict) else {}


def refuse_other(part: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a DmgalError that names all differences, if there are any."""
    other = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    if other:
        refuse(
            f"The store {part} holds something else.",
            ", ".join(f"{name}={stored.get(name)!r}" for name in other),
            ", ".join(f"{name}={wanted.get(name)!r}" for name in other),
            "Use the options of this store, choose another folder, or delete this store and build it again.",
        )


def refuse(problem: str, received: str, expected: str, remedy: str) -> NoReturn:
    """Raise a DmgalError with these four parts."""
    raise DmgalError(problem, received=received, expected=expected, remedy=remedy)
