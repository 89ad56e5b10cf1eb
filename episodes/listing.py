"""Names in a message: the first few, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_SHOWN = 5


def listed(names: Sequence[str]) -> str:
    """``a, b, c, d, e and 7 more``; ``none`` where there are none."""
    more = len(names) - NAMES_SHOWN
    return (", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")) or "none"
