"""The one kind of error for mistakes of the user: what failed, what was received, what was expected, what to do."""

from __future__ import annotations

import re
from typing import Any

_FOUR_PARTS = re.compile(
    r"(?P<problem>.*?)\n  received: (?P<received>.*?)\n  expected: (?P<expected>.*?)\n  what to do: (?P<remedy>.*)",
    re.DOTALL,
)


class DmgalError(ValueError):
    """A mistake that the user can correct. The command line prints it without a traceback and exits with 2.

    The four parts are attributes of the same names. Errors of this class and of its subclasses can be pickled.

    torch rebuilds an error of a loader worker from the text of the worker's traceback alone. A ``problem`` without
    other parts may therefore be such a traceback. The message at its end is used, and the parts are restored from it.

    Args:
        problem: what could not be done, as one sentence.
        received: the names, values or shapes received.
        expected: what would have been accepted.
        remedy: what the user can do now.
    """

    problem: str
    received: str | None
    expected: str | None
    remedy: str | None

    def __init__(
        self, problem: str, *, received: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        if received is None and expected is None and remedy is None:
            message = problem.rpartition(f"{type(self).__name__}: ")[2].strip()
            super().__init__(message)
            parts = _FOUR_PARTS.fullmatch(message)
            if parts is None:
                problem = message
            else:
                problem, received, expected, remedy = parts.group("problem", "received", "expected", "remedy")
        else:
            super().__init__(f"{problem}\n  received: {received}\n  expected: {expected}\n  what to do: {remedy}")
        self.problem = problem
        self.received = received
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, so that subclasses may have other arguments."""
        return _rebuild, (type(self), str(self)), vars(self)


def _rebuild(kind: type[DmgalError], message: str) -> DmgalError:
    """Return an error with this message, without calling ``__init__``."""
    return kind.__new__(kind, message)


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, or the error's class name if there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
