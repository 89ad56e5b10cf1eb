"""Progress bars and messages on stderr: a bar on a terminal, at most one plain line per 10 seconds in a pipe or file.

Library code reports by `logging`. Commands print these reports within `printed_messages`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0
_bars: weakref.WeakSet[tqdm[object]] = weakref.WeakSet()


def progress_bar(iterable: Iterable[T] | None = None, *, progress: bool = True, **options: object) -> tqdm[T]:
    """Return a `tqdm` bar on stderr. If stderr is no terminal, it prints lines, and none in its first 10 seconds.

    Args:
        iterable: items to count; without it the caller calls ``update``.
        progress: False shows nothing.
        options: others of `tqdm`, such as ``total``, ``desc``, ``unit`` and ``leave``.
    """
    from tqdm import tqdm  # slow to import, and not needed by ``--help``

    if not sys.stderr.isatty():
        options |= {"file": _PlainLines(sys.stderr), "mininterval": SECONDS_BETWEEN_LINES, "ncols": 0}
    bar = tqdm(iterable, disable=not progress, delay=1e-9, **options)
    _bars.add(bar)  # before the bar is drawn, so that Ctrl-C always finds it
    bar.delay = 0
    bar.refresh()
    return bar


def close_bars() -> None:
    """Close all open bars, so that the next message has a line of its own."""
    for bar in list(_bars):
        bar.close()


class _PlainLines:
    """A stream for `tqdm` that passes on one line per interval, without control characters."""

    last_line = 0.0
    """Time of the latest line of any bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._opened = stream, time.monotonic()

    def write(self, text: str) -> None:
        line, now = text.strip(), time.monotonic()
        is_update = text.startswith("\r") and line
        if is_update and now - max(self._opened, _PlainLines.last_line) >= SECONDS_BETWEEN_LINES:
            _PlainLines.last_line = now
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def printed_messages() -> Iterator[None]:
    """Print the messages of this package's loggers to stderr: warnings of every process, the rest of rank 0 only."""
    with _PRINTING:
        if not _PRINTING.count:
            _PRINTING.start()
        _PRINTING.count += 1
    try:
        yield
    finally:
        with _PRINTING:
            _PRINTING.count -= 1
            if not _PRINTING.count:
                _PRINTING.stop()


class _Printing:
    """The handler and settings of this package's loggers while commands run, one or several in threads."""

    def __init__(self) -> None:
        self.count = 0
        """Number of running commands."""
        self._handler = _MessageHandler()
        self._before: list[tuple[logging.Logger, int, bool]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def start(self) -> None:
        for name in (__package__, "__main__"):  # a command may be the main module
            logger = logging.getLogger(name)
            self._before.append((logger, logger.level, logger.propagate))
            logger.addHandler(self._handler)
            logger.setLevel(logger.level or logging.INFO)
            logger.propagate = False  # a library that configures the root logger would print everything again

    def stop(self) -> None:
        while self._before:
            logger, level, propagate = self._before.pop()
            logger.removeHandler(self._handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _MessageHandler(logging.Handler):
    """Print plain messages, above the open bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and os.environ.get("RANK", "0") != "0":
            return
        if not _bars:
            print(self.format(record), file=sys.stderr, flush=True)
            return
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


_PRINTING = _Printing()
