"""The one kind of error for mistakes of the user: what failed, what was received, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping

MOST_DIFFERENCES = 20
"""Maximum number of differences listed in a message."""
MOST_SHOWN = 100
"""Maximum number of characters of each name and value."""
MOST_OF_A_PART = 2000
"""Maximum number of characters of each part of a message."""

FROM_OUTSIDE = "If a package of yours adds it, import its module first; for commands, set DMGAL_PLUGINS=MODULE."
"""Advice for a name that is in no registry."""


class DmgalError(ValueError):
    """A mistake that the user can correct. The command line prints it without a traceback and exits with 2.

    The four parts are attributes of the same names. Errors of this class and of its subclasses can be pickled.

    Args:
        problem: what could not be done, as one sentence.
        received: the names, values or shapes received.
        expected: what would have been accepted.
        remedy: what the user can do now.
    """

    def __init__(
        self, problem: str, *, received: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        received, expected, remedy = (part and _short(part, MOST_OF_A_PART) for part in (received, expected, remedy))
        parts = {"received": received, "expected": expected, "what to do": remedy}
        lines = [f"\n  {name}: {part}" for name, part in parts.items() if part is not None]
        super().__init__(problem + "".join(lines))
        self.problem = problem
        self.received = received
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the message and the attributes, so that subclasses may have other arguments."""
        return _rebuild, (type(self), str(self)), vars(self)


def _rebuild(kind: type[DmgalError], message: str) -> DmgalError:
    """Return an error with this message, without calling ``__init__``."""
    return kind.__new__(kind, message)


def differences(saved: Mapping[str, object], current: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return the saved and the current value of each entry that differs, by name. A missing entry is None."""
    names = sorted({*saved, *current})
    return {name: (saved.get(name), current.get(name)) for name in names if saved.get(name) != current.get(name)}


def refuse_differences(changes: Mapping[str, tuple[object, object]], problem: str, remedy: str) -> None:
    """Raise a DmgalError that lists the current and the saved values of `differences`, if there are any."""
    if changes:
        listed = list(changes.items())[:MOST_DIFFERENCES]
        more = f" and {len(changes) - MOST_DIFFERENCES} more" if len(changes) > MOST_DIFFERENCES else ""
        raise DmgalError(
            problem,
            received=", ".join(f"{_short(name)}={_around(repr(new), repr(old))}" for name, (old, new) in listed) + more,
            expected=", ".join(f"{_short(name)}={_around(repr(old), repr(new))}" for name, (old, new) in listed)
            + more
            + ", as saved",
            remedy=remedy,
        )


def _around(text: str, other: str) -> str:
    """Return a text, or the part of a long one that begins shortly before its first difference to the other."""
    first = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(other))
    start = max(0, first - MOST_SHOWN // 2) if len(text) > MOST_SHOWN else 0
    return ("..." if start else "") + _short(text[start:])


def _short(text: str, most: int = MOST_SHOWN) -> str:
    """Return the beginning of a text that a file may have made long."""
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, or the error's class name if there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
