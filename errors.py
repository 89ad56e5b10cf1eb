"""One kind of error for everything a user can get wrong: what failed, what came, what was expected, what to do."""

from __future__ import annotations


class DmgalError(ValueError):
    """A mistake that the user can mend; the command line prints it without a traceback and exits with 2.

    Args:
        failed: what could not be done, one sentence.
        received: the names, values or shapes that came.
        expected: what would have been accepted.
        remedy: what to do now.

    Given the first alone it is taken for the whole message: so it comes out of a pickle, and so torch builds it anew
    from the text of a loader worker's traceback, whose end is the message.
    """

    def __init__(
        self, failed: str, *, received: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        if received is None and expected is None and remedy is None:
            super().__init__(failed.rpartition(f"{type(self).__name__}: ")[2].strip())
        else:
            super().__init__(f"{failed}\n  received: {received}\n  expected: {expected}\n  what to do: {remedy}")


def first_line(error: Exception) -> str:
    """What another library's error says in its first line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
