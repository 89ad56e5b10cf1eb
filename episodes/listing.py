"""Names in a message: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_SHOWN = 5


def listed(names: Sequence[str], count: int | None = None) -> str:
    """``a, b, c, d, e and 7 more``; ``none`` where there are none. ``count`` where there are more than were kept."""
    more = (len(names) if count is None else count) - NAMES_SHOWN
    shown = ", ".join(printable(name) for name in names[:NAMES_SHOWN])
    return (shown + (f" and {more} more" if more > 0 else "")) or "none"


def printable(name: str) -> str:
    """A file's name as any terminal can show it: bytes that are no UTF-8 as ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
