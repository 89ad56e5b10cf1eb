"""What a part of a store says of itself: everything but the videos that shapes its content, as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from ...errors import DmgalError
from ..listing import listed

KEY = "key.json"
REMEDY = "build it: dmgal store, with the options of this run; it decodes only what is missing or has changed"


def claim(part: Path, description: dict[str, Any]) -> None:
    """Say what a part holds, before anything is put into it; refuse one that holds something else."""
    if (part / KEY).exists():
        refuse_other(part, read_key(part), description)
        return
    strangers = sorted(path.name for path in part.iterdir() if not path.name.startswith("."))
    if strangers:
        refuse(f"cannot build a store in {part}", f"{listed(strangers)}, but no {KEY}", "an empty folder", "choose one")
    unfinished = part / f".{KEY}.part"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(description, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, part / KEY)


def read_key(part: Path) -> dict[str, Any]:
    """What a part says; nothing where that cannot be read.

    Raises:
        DmgalError: there is no store.
    """
    try:
        key = json.loads((part / KEY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse(f"there is no store in {part}", f"no {KEY}", "a folder that dmgal store has made", REMEDY)
    except ValueError:
        key = None
    return key if isinstance(key, dict) else {}


def refuse_other(part: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a DmgalError that names every difference, if there is one."""
    other = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    if other:
        refuse(
            f"the store {part} holds something else",
            ", ".join(f"{name}={stored.get(name)!r}" for name in other),
            ", ".join(f"{name}={wanted.get(name)!r}" for name in other),
            "ask for what it holds, build another store in another folder, or delete this one and build it again",
        )


def refuse(failed: str, received: str, expected: str, remedy: str) -> NoReturn:
    """An error in four parts."""
    raise DmgalError(failed, received=received, expected=expected, remedy=remedy)
