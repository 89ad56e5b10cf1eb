"""Standard output that never ends a command: closed from the start, on a full disk, or without some characters.

A command writes its results to files as well as to the output. So it continues without an output that cannot be
written, and reports the reason at the end. A pipe that its reader closes ends the command, as usual (``| head``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class TolerantOutput:
    """A stream that discards all text after a failed write.

    Args:
        stream: the stream to write to. Its other attributes can be used, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        """The error of the failed write."""

    def write(self, text: str) -> int:
        """Write text, or discard it."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless a write has failed."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except BrokenPipeError:
            raise
        except OSError as error:
            self.error = error
            with open(os.devnull, "wb") as nowhere:  # for what the stream has buffered
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def tolerant_output() -> Iterator[TolerantOutput]:
    """Replace standard output inside the context. Characters that its encoding lacks are printed as escapes."""
    before = sys.stdout
    if isinstance(before, TolerantOutput):
        yield before
        return
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        output = TolerantOutput(nowhere if before is None else before)
        sys.stdout = output
        try:
            yield output
        finally:
            sys.stdout = before
