"""Names in a message: the first few, and the number of remaining names."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_SHOWN = 5


def listed(names: Sequence[str], count: int | None = None) -> str:
    """Return the names as ``a, b, c, d, e and 7 more``, or ``none`` if there are none.

    Args:
        names: all names, or at least the first ``NAMES_SHOWN``.
        count: total number of names; None uses ``len(names)``.
    """
    num_hidden = (len(names) if count is None else count) - NAMES_SHOWN
    text = ", ".join(printable(name) for name in names[:NAMES_SHOWN])
    if num_hidden > 0:
        text += f" and {num_hidden} more"
    return text or "none"


def printable(name: str) -> str:
    """Return a file name that any terminal can print. Bytes that are not valid UTF-8 become ``\\xe9`` and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
