"""One kind of error for everything a user can get wrong: what failed, what came, what was expected, what to do."""

from __future__ import annotations


class DmgalError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback and exits with 2.

    Args:
        failed: what could not be done, one sentence.
        received: the names, values or shapes that came.
        expected: what would have been accepted.
        remedy: what to do now.
    """

    def __init__(self, failed: str, *, received: str, expected: str, remedy: str) -> None:
        super().__init__(f"{failed}\n  received: {received}\n  expected: {expected}\n  what to do: {remedy}")
