"""Events of a watched video as lines of JSON, on standard output or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self, TextIO

from dmgal.episodes.gallery.events import Event
from dmgal.errors import DmgalError
from dmgal.files import printable, reason
from dmgal.recipes.run.watching import WatchCounts


class EventLines:
    """Writer of the lines of events, one when an event begins and one when it ends, and of a summary. It is a context.

    Args:
        path: file to write. None: standard output.
        names: names of the classes.

    Raises:
        DmgalError: the file cannot be written.
    """

    def __init__(self, path: Path | None, names: Sequence[str]) -> None:
        self._names = names
        self._file = None if path is None else _opened(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # the failed write of a line was an error already
                self._file.close()

    def event(self, event: Event) -> None:
        """Write the line of an event that begins or ends."""
        line = {"type": "end" if event.is_over else "begin", "action": self._names[event.label], "start": event.start}
        if event.is_over:
            line |= {"end": event.end, "windows": event.windows}
        self._write({**line, "probability": event.probability})

    def summary(self, counts: WatchCounts) -> dict[str, object]:
        """Write the last line, and return it."""
        return self._write({"type": "summary", **asdict(counts)})

    def _write(self, content: Mapping[str, object]) -> dict[str, object]:
        """Write a line with numbers rounded to thousandths, and return it."""
        line = {name: round(value, 3) if isinstance(value, float) else value for name, value in content.items()}
        print(json.dumps(line, allow_nan=False), file=self._file, flush=True)
        return line


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise DmgalError(
            "The events cannot be written to this file.",
            received=f"{printable(str(path))}: {reason(error)}",
            expected="a file in an existing folder that you may write",
            remedy="Choose another --out.",
        ) from error
