"""The columns of a catalog, gathered row by row and checked at the end, without an object per video."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np

from ...errors import DmgalError
from ..listing import listed, printable
from .packed_names import PackedNames
from .video_files import VIDEO_EXTENSIONS


class CatalogColumns:
    """Videos, labels and classes of a catalog in the making; classes are numbered as they first appear.

    Args:
        source: what the rows come from, for messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._classes: dict[tuple[str, str], int] = {}
        self._labels = array("q")
        self._hashes = array("q")

    def packed(self, rows: Iterator[tuple[str, str, str | None]]) -> PackedNames:
        """Takes in rows ``(split or "", class name, video)`` and returns the videos; a row without one tells a class.

        Raises:
            DmgalError: no class, a class in two splits or without a video, or a video listed twice.
        """
        videos = PackedNames(self._videos(rows))
        if not self._classes:
            _refuse(
                f"{self.source} has no classes",
                "neither class folders nor rows",
                "root/class/video, root/{train,val,test}/class/video, or a split file with rows",
                "check the path",
            )
        self._check_classes()
        self._check_repeats(videos)
        return videos

    @property
    def labels(self) -> np.ndarray:
        """``(V,)`` int64."""
        return np.frombuffer(self._labels.tobytes(), dtype=np.int64)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self._classes)

    @property
    def class_splits(self) -> tuple[str, ...] | None:
        """None where nothing was said of a class."""
        splits = tuple(split for split, _ in self._classes)
        return splits if all(splits) else None

    def reversal_pairs(self, reversals: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
        """Pairs of classes from the name of each class's reversal; a class that is its own is in no pair.

        Raises:
            DmgalError: an unknown class, or one that is the reversal of several.
        """
        pairs = {frozenset(pair) for pair in reversals.items() if pair[0] != pair[1]}
        members = [name for pair in pairs for name in pair]
        numbers = {name: number for number, name in enumerate(self.class_names)}
        wrong = sorted({name for name in members if name not in numbers or members.count(name) > 1})
        if wrong:
            _refuse(
                f"the column 'reversal' of {self.source} does not pair its classes",
                listed(wrong),
                "classes of the file, each the reversal of one other",
                "correct the column, or leave it empty for classes without a reversal",
            )
        return tuple(sorted((min(pair), max(pair)) for pair in ([numbers[name] for name in pair] for pair in pairs)))

    def _videos(self, rows: Iterator[tuple[str, str, str | None]]) -> Iterator[str]:
        for split, name, video in rows:
            name = name if name.isascii() else printable(name)
            number = self._classes.setdefault((split, name), len(self._classes))
            if video:
                self._labels.append(number)
                self._hashes.append(hash(video))
                yield video

    def _check_classes(self) -> None:
        names = self.class_names
        if len(set(names)) < len(names):
            splits_of: dict[str, list[str]] = {}
            for split, name in self._classes:
                splits_of.setdefault(name, []).append(split)
            _refuse(
                f"some classes of {self.source} are in two splits",
                listed([name for name, splits in splits_of.items() if len(splits) > 1]),
                "each class in one split: few-shot classes of validation and test must be new",
                "rename the classes if they differ, or give each to one split",
            )
        counts = np.bincount(self.labels, minlength=len(names))
        refuse_empty([names[c] for c in np.flatnonzero(counts == 0)], self.source)

    def _check_repeats(self, videos: PackedNames) -> None:
        """A video listed twice could be support and query of one task."""
        hashes = np.frombuffer(self._hashes.tobytes(), dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        alike = np.flatnonzero(np.diff(hashes[order]) == 0)
        repeated = [videos[a] for a, b in zip(order[alike], order[alike + 1], strict=True) if videos[a] == videos[b]]
        if repeated:
            _refuse(
                f"some videos of {self.source} are listed more than once",
                f"{len(repeated)} repeated: {listed(repeated)}",
                "each video once, in one class: listed twice, it could be support and query of one task",
                "take the repeated lines out",
            )


def refuse_empty(classes: Sequence[str], source: str) -> None:
    """DmgalError where there is a class without a video."""
    if classes:
        _refuse(
            f"some classes of {source} have no video",
            f"{len(classes)} without: {listed(classes)}",
            f"in each class, files with one of {' '.join(VIDEO_EXTENSIONS)}, or folders of jpg or png frames",
            "add videos to these classes, or remove them",
        )


def _refuse(failed: str, received: str, expected: str, remedy: str) -> NoReturn:
    raise DmgalError(failed, received=received, expected=expected, remedy=remedy)
