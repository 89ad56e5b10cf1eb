"""The columns of a catalog, collected row by row and checked at the end."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np

from ...errors import DmgalError
from ...files import listed, printable
from .files import VIDEO_EXTENSIONS


class CatalogColumns:
    """Labels and classes of a catalog under construction. Classes are numbered in order of first appearance.

    Args:
        source: the origin of the rows, for error messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._classes: dict[tuple[str, str], int] = {}
        self._labels = array("q")

    def add_rows(self, rows: Iterator[tuple[str, str, str | None]]) -> tuple[str, ...]:
        """Add rows ``(split or "", class name, video)`` and return the videos. A row without a video adds its class.

        Raises:
            DmgalError: no class, a class in two splits or without a video, or a video listed twice.
        """
        videos = tuple(self._add_videos(rows))
        if not self._classes:
            _refuse(
                f"{self.source} has no classes.",
                "neither class folders nor rows",
                "root/class/video, root/{train,val,test}/class/video, or a split file with rows",
                "Check the path.",
            )
        self._check_classes()
        self._check_repeats(videos)
        return videos

    @property
    def labels(self) -> np.ndarray:
        """Class numbers of the videos, ``(V,)`` int64."""
        return np.frombuffer(self._labels.tobytes(), dtype=np.int64)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in order of first appearance."""
        return tuple(name for _, name in self._classes)

    @property
    def class_splits(self) -> tuple[str, ...] | None:
        """Split of each class; None if the split of any class is unknown."""
        splits = tuple(split for split, _ in self._classes)
        return splits if all(splits) else None

    def reversal_pairs(self, reversals: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
        """Return pairs of class numbers, given each class name's reversal. A class that reverses itself has no pair.

        Raises:
            DmgalError: an unknown class, or a class that is the reversal of several classes.
        """
        pairs = {frozenset(pair) for pair in reversals.items() if pair[0] != pair[1]}
        members = [name for pair in pairs for name in pair]
        number_of = {name: number for number, name in enumerate(self.class_names)}
        wrong = sorted({name for name in members if name not in number_of or members.count(name) > 1})
        if wrong:
            _refuse(
                f"The column 'reversal' of {self.source} does not pair its classes.",
                listed(wrong),
                "classes of the file, each the reversal of one other class",
                "Correct the column, or leave it empty for classes without a reversal.",
            )
        numbered = [sorted(number_of[name] for name in pair) for pair in pairs]
        return tuple(sorted((first, second) for first, second in numbered))

    def _add_videos(self, rows: Iterator[tuple[str, str, str | None]]) -> Iterator[str]:
        for split, name, video in rows:
            number = self._classes.setdefault((split, printable(name)), len(self._classes))
            if video:
                self._labels.append(number)
                yield video

    def _check_classes(self) -> None:
        names = self.class_names
        if len(set(names)) < len(names):
            splits_of: dict[str, list[str]] = {}
            for split, name in self._classes:
                splits_of.setdefault(name, []).append(split)
            _refuse(
                f"Some classes of {self.source} are in two splits.",
                listed([name for name, splits in splits_of.items() if len(splits) > 1]),
                "each class in one split: few-shot classes of validation and test must be new",
                "Rename the classes if they differ, or assign each class to one split.",
            )
        counts = np.bincount(self.labels, minlength=len(names))
        refuse_empty([names[c] for c in np.flatnonzero(counts == 0)], self.source)

    def _check_repeats(self, videos: tuple[str, ...]) -> None:
        """Raise an error if a video is listed twice, since it could be support and query of one task."""
        num_listed = Counter(videos)
        if len(num_listed) < len(videos):
            repeated = [video for video, count in num_listed.items() if count > 1]
            _refuse(
                f"Some videos of {self.source} are listed more than once.",
                f"{len(repeated)} repeated: {listed(repeated)}",
                "each video once, in one class: otherwise it could be support and query of one task",
                "Remove the repeated lines.",
            )


def refuse_empty(classes: Sequence[str], source: str) -> None:
    """Raise DmgalError if there are classes without a video.

    Args:
        classes: names of the classes without a video.
        source: the origin of the rows, for the message.
    """
    if classes:
        _refuse(
            f"Some classes of {source} have no video.",
            f"{len(classes)} without: {listed(classes)}",
            f"in each class, files with one of {' '.join(VIDEO_EXTENSIONS)}, or folders of jpg or png frames",
            "Add videos to these classes, or remove the classes.",
        )


def _refuse(problem: str, received: str, expected: str, remedy: str) -> NoReturn:
    raise DmgalError(problem, received=received, expected=expected, remedy=remedy)
