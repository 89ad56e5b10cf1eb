"""The columns of a catalog, collected row by row and checked at the end."""

from __future__ import annotations

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...errors import DmgalError
from ...files import listed, printable
from ...names import alike
from .files import SHOWN_EXTENSIONS, same_files

Columns = tuple[tuple[str, ...], np.ndarray, tuple[str, ...], tuple[str, ...] | None]
"""The fields ``videos``, ``labels``, ``class_names`` and ``class_splits`` of a `VideoCatalog`."""


def collect_columns(rows: Iterator[tuple[str, str, str | None]], source: str, root: Path) -> Columns:
    """Collect and check rows ``(split or "", class name, video)``. Classes are numbered in order of first appearance.

    Args:
        rows: a row without a video only adds its class.
        source: the origin of the rows, for error messages.
        root: folder that the videos are relative to.

    Raises:
        DmgalError: no class, a class in two splits, under two spellings or without a video, or a video listed twice,
            also if by a link or another spelling of its path.
    """
    classes: dict[tuple[str, str], int] = {}
    numbers = array("q")  # takes a quarter of the memory of a list

    def videos_of_rows() -> Iterator[str]:
        for split, name, video in rows:
            number = classes.setdefault((split, printable(name)), len(classes))
            if video:
                numbers.append(number)
                yield video

    videos = tuple(videos_of_rows())
    labels = np.frombuffer(numbers.tobytes(), dtype=np.int64)
    splits, names = tuple(split for split, _ in classes), tuple(name for _, name in classes)
    if not names:
        raise DmgalError(
            f"{source} has no classes.",
            received="neither class folders nor rows",
            expected="root/class/video, root/{train,val,test}/class/video, or a split file with rows",
            remedy="Check the path.",
        )
    if len(set(names)) < len(names):
        raise DmgalError(
            f"Some classes of {source} are in two splits.",
            received=listed(_repeated(names)),
            expected="each class in one of train, val and test: few-shot classes of validation and test must be new",
            remedy="Rename the classes if they differ, or assign each class to one split.",
        )
    alike = _alike(names, splits)
    if alike:
        raise DmgalError(
            f"Some classes of {source} are listed under two spellings.",
            received=listed(alike),
            expected="one spelling of each class: names that look alike could put one class into two splits",
            remedy="Use one spelling, or names that differ in more than case, blanks, underscores and accents.",
        )
    names = tuple(name.strip() or name for name in names)
    empty = [names[c] for c in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)]
    if empty:
        raise DmgalError(
            f"Some classes of {source} have no video.",
            received=f"{len(empty)} without: {listed(empty)}",
            expected=f"in each class, files with one of {SHOWN_EXTENSIONS}, or folders of jpg or png frames",
            remedy="Add videos to these classes, or remove the classes.",
        )
    repeated = _repeated(videos)
    if repeated:
        raise DmgalError(
            f"Some videos of {source} are listed more than once.",
            received=f"{len(repeated)} repeated: {listed(repeated)}",
            expected="each video once, in one class: otherwise it could be support and query of one task",
            remedy="Remove the repeated lines.",
        )
    twice = [f"{first} is the same file as {other}" for first, other in same_files(root, videos)]
    if twice:
        raise DmgalError(
            f"Some videos of {source} are listed under two names.",
            received=f"{len(twice)} repeated: {listed(twice)}",
            expected="each video once, in one class: otherwise it could be support and query of one task",
            remedy="Remove one of the two names: a line of the list, or a link in the folder.",
        )
    return videos, labels, names, splits if all(splits) else None


def pair_classes(
    class_names: tuple[str, ...], reversals: Mapping[str, str], source: str
) -> tuple[tuple[int, int], ...]:
    """Return pairs of class numbers, given each class name's reversal. A class that reverses itself has no pair.

    Raises:
        DmgalError: an unknown class, or a class that is the reversal of several classes.
    """
    pairs = {frozenset(pair) for pair in reversals.items() if pair[0] != pair[1]}
    members = [name for pair in pairs for name in pair]
    number_of = {name: number for number, name in enumerate(class_names)}
    wrong = sorted({name for name in members if name not in number_of or members.count(name) > 1})
    if wrong:
        raise DmgalError(
            f"The column 'reversal' of {source} does not pair its classes.",
            received=listed(wrong),
            expected="classes of the file, each the reversal of one other class",
            remedy="Correct the column, or leave it empty for classes without a reversal.",
        )
    numbered = [sorted(number_of[name] for name in pair) for pair in pairs]
    return tuple(sorted((first, second) for first, second in numbered))


def _alike(names: tuple[str, ...], splits: tuple[str, ...]) -> list[str]:
    """Return a text for each group of names that differ only in case, blanks, forms of letters or invisible marks."""
    texts = []
    for numbers in alike(names):
        look_equal = len({unicodedata.normalize("NFC", names[number]) for number in numbers}) < len(numbers)
        shown = [ascii(names[number]) if look_equal else repr(names[number]) for number in numbers]
        places = [f" ({splits[number]})" if splits[number] else "" for number in numbers]
        texts.append(" and ".join(name + place for name, place in zip(shown, places, strict=True)))
    return texts


def _repeated(names: tuple[str, ...]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1] if len(set(names)) < len(names) else []
