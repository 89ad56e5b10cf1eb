"""A data set as columns: where each video lies, its class, and the split of each class.

A class belongs to one split only, or few-shot results mean nothing; so the split is a column of classes, not of videos.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from ..errors import DmgalError
from .listing import listed
from .split_files import SPLITS, read_rows, write_rows
from .video_files import VIDEO_EXTENSIONS, VideoFinder, subfolders, videos_in


@dataclass(frozen=True, eq=False, repr=False)
class VideoCatalog:
    """The videos of a data set.

    Args:
        root: folder that the videos are relative to.
        videos: path of each video, ``(V,)``, with forward slashes.
        labels: class of each video, ``(V,)`` int64, in ``0..len(class_names)-1``.
        class_names: ``(num_classes,)``, all different.
        class_splits: "train", "val" or "test" for each class; None where nothing was said.
        reversal_pairs: classes that are each other's time reversal, if the data set has such.
    """

    root: Path
    videos: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_splits: tuple[str, ...] | None = None
    reversal_pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_csv(cls, csv_path: str | os.PathLike[str], root: str | os.PathLike[str]) -> VideoCatalog:
        """Read a split file with the columns ``split,class_name,video``, plain or gzipped.

        ``video`` is relative to ``root``; where it names neither a file nor a folder, the known extensions are tried.
        A column ``reversal`` may name the class that shows the same motion backward in time; a class that is its own
        reversal, or whose reversal is left empty, is in no pair. Other columns are ignored. Classes are numbered as
        they first appear.

        Raises:
            DmgalError: no file or root, a column missing, a bad row, a class in two splits or without a video, or
                videos that are not there (all are counted, some named).
        """
        csv_path, root = Path(csv_path), _existing_folder(root)
        rows = list(read_rows(csv_path))
        with_video = [row for row in rows if row[2]]
        empty = {row[1] for row in rows} - {row[1] for row in with_video}
        if empty:
            _refuse_empty(sorted(empty), str(csv_path))
        finder = VideoFinder(root)
        found = [finder.find(video) for _, _, video, _ in with_video]
        missing = [row[2] for row, path in zip(with_video, found, strict=True) if path is None]
        if missing:
            _refuse(
                f"videos of {csv_path} are missing",
                f"{len(missing)} of {len(with_video)} not found in {root}: {listed(missing)}",
                f"each as a frame folder or a file, its extension given or one of {' '.join(VIDEO_EXTENSIONS)}",
                "check the root folder, or take the missing videos out of the split file",
            )
        paths = (((split, name), path or "") for (split, name, _, _), path in zip(with_video, found, strict=True))
        return _build(root, paths, {name: reversal for _, name, _, reversal in rows if reversal}, str(csv_path))

    @classmethod
    def from_folders(cls, root: str | os.PathLike[str]) -> VideoCatalog:
        """Take every folder for a class: ``root/{train,val,test}/class/video``, or without splits ``root/class/video``.

        A video is a file with a known extension or a folder of jpg or png frames; other files are left alone. Classes
        and videos are in natural order.

        Raises:
            DmgalError: no root, no classes, a class without a video, a class in two splits, or split folders beside
                other folders.
        """
        root = _existing_folder(root)
        folders = subfolders(root)
        named_as_split = [name for name in folders if name in SPLITS]
        if named_as_split and len(named_as_split) < len(folders):
            _refuse(
                f"cannot tell splits from classes in {root}",
                f"the folders {listed(folders)}",
                f"either only {', '.join(SPLITS)}, or only classes",
                "move the other folders away, or write a split file and use it instead",
            )
        if named_as_split:
            classes = [(split, name) for split in SPLITS if split in folders for name in subfolders(root / split)]
        else:
            classes = [("", name) for name in folders]
        paths = (Path(split, name) for split, name in classes)
        videos = [[(path / video).as_posix() for video in videos_in(root / path)] for path in paths]
        empty = [name for (_, name), found in zip(classes, videos, strict=True) if not found]
        if empty:
            _refuse_empty(empty, str(root))
        rows = ((key, video) for key, found in zip(classes, videos, strict=True) for video in found)
        return _build(root, rows, {}, str(root))

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        splits = {split: self.class_splits.count(split) for split in SPLITS} if self.class_splits else None
        return (
            f"VideoCatalog(root={str(self.root)!r}, videos={len(self)}, classes={len(self.class_names)}, "
            f"classes_by_split={splits}, reversal_pairs={len(self.reversal_pairs)})"
        )

    def path(self, video: int) -> Path:
        """Where a video lies."""
        return self.root / self.videos[video]

    def split(self, name: str) -> VideoCatalog:
        """The classes of one split, numbered anew from 0, and their videos; pairs stay where both classes do.

        Raises:
            DmgalError: the catalog has no splits, or none of this name.
        """
        kept = [c for c, split in enumerate(self.class_splits or ()) if split == name]
        if not kept:
            present = sorted(set(self.class_splits or ()), key=SPLITS.index)
            _refuse(
                f"the catalog of {self.root} has no split {name!r}",
                f"the splits {', '.join(present)}" if present else "classes without a split",
                f"one of {', '.join(SPLITS)}, with at least one class",
                "choose another split, or make one by catalog.with_seeded_split(seed)",
            )
        renumbered = np.full(len(self.class_names), -1, dtype=np.int64)
        renumbered[kept] = np.arange(len(kept))
        labels = renumbered[self.labels]
        pairs = ((int(renumbered[a]), int(renumbered[b])) for a, b in self.reversal_pairs)
        return VideoCatalog(
            root=self.root,
            videos=tuple(self.videos[video] for video in np.flatnonzero(labels >= 0)),
            labels=labels[labels >= 0],
            class_names=tuple(self.class_names[c] for c in kept),
            class_splits=(name,) * len(kept),
            reversal_pairs=tuple((a, b) for a, b in pairs if a >= 0 and b >= 0),
        )

    def with_seeded_split(self, seed: int, fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)) -> VideoCatalog:
        """The same videos with classes dealt at random to train, val and test; reversal pairs stay together.

        Args:
            seed: the same seed gives the same split.
            fractions: share of the classes in train, val and test; 0 leaves a split out.

        Raises:
            DmgalError: fractions that do not add up to 1, or a split that gets no class.
        """
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            _refuse(
                "cannot split the classes", f"fractions={fractions}", "shares that add up to 1", "change the fractions"
            )
        paired = {c for pair in self.reversal_pairs for c in pair}
        groups = [*self.reversal_pairs, *((c,) for c in range(len(self.class_names)) if c not in paired)]
        borders = np.cumsum(fractions)
        class_splits = [""] * len(self.class_names)
        dealt = 0
        for place in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
            middle = (dealt + len(groups[place]) / 2) / len(self.class_names)
            for c in groups[place]:
                class_splits[c] = SPLITS[min(int(np.searchsorted(borders, middle)), 2)]
            dealt += len(groups[place])
        without = [name for name, share in zip(SPLITS, fractions, strict=True) if share and name not in class_splits]
        if without:
            _refuse(
                f"no class is left for {' and '.join(without)}",
                f"{len(self.class_names)} classes and fractions={fractions}",
                "at least one class in each split",
                "add classes, or change the fractions",
            )
        columns = (self.root, self.videos, self.labels, self.class_names)
        return VideoCatalog(*columns, tuple(class_splits), self.reversal_pairs)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a split file that `from_csv` reads back; gzipped where the name ends in ``.gz``.

        Raises:
            DmgalError: the catalog has no splits.
        """
        if self.class_splits is None:
            _refuse(
                "cannot write a split file",
                f"the catalog of {self.root}, without splits",
                "classes that belong to train, val or test",
                "make a split by catalog.with_seeded_split(seed)",
            )
        reversal = {c: self.class_names[d] for a, b in self.reversal_pairs for c, d in ((a, b), (b, a))}
        splits, names = self.class_splits, self.class_names
        pairs = zip(self.videos, self.labels.tolist(), strict=True)
        write_rows(Path(path), ((splits[c], names[c], video, reversal.get(c, "")) for video, c in pairs))


def _build(
    root: Path, rows: Iterable[tuple[tuple[str, str], str]], reversals: dict[str, str], source: str
) -> VideoCatalog:
    """Columns from rows of ``((split, class name), video)``."""
    numbers: dict[tuple[str, str], int] = {}
    videos: list[str] = []
    labels: list[int] = []
    for key, video in rows:
        labels.append(numbers.setdefault(key, len(numbers)))
        videos.append(video)
    names = tuple(name for _, name in numbers)
    if not names:
        _refuse(
            f"{source} has no classes",
            "neither class folders nor rows",
            "root/class/video, root/{train,val,test}/class/video, or a split file with rows",
            "check the path",
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        _refuse(
            f"some classes of {source} are in two splits",
            listed(twice),
            "each class in one split: few-shot classes of validation and test must be new",
            "rename the classes if they differ, or give each to one split",
        )
    splits = tuple(split for split, _ in numbers)
    return VideoCatalog(
        root=root,
        videos=tuple(videos),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=names,
        class_splits=splits if all(splits) else None,
        reversal_pairs=_reversal_pairs(names, reversals, source),
    )


def _reversal_pairs(names: tuple[str, ...], reversals: dict[str, str], source: str) -> tuple[tuple[int, int], ...]:
    pairs = {frozenset(pair) for pair in reversals.items() if pair[0] != pair[1]}
    members = [name for pair in pairs for name in pair]
    numbers = {name: number for number, name in enumerate(names)}
    wrong = sorted({name for name in members if name not in numbers or members.count(name) > 1})
    if wrong:
        _refuse(
            f"the column 'reversal' of {source} does not pair its classes",
            listed(wrong),
            "classes of the file, each the reversal of one other",
            "correct the column, or leave it empty for classes without a reversal",
        )
    return tuple(sorted((min(pair), max(pair)) for pair in ([numbers[name] for name in pair] for pair in pairs)))


def _refuse_empty(classes: Sequence[str], source: str) -> NoReturn:
    _refuse(
        f"some classes of {source} have no video",
        f"{len(classes)} without: {listed(classes)}",
        f"in each class, files with one of {' '.join(VIDEO_EXTENSIONS)}, or folders of jpg or png frames",
        "add videos to these classes, or remove them",
    )


def _existing_folder(root: str | os.PathLike[str]) -> Path:
    if not Path(root).is_dir():
        _refuse("the folder of the videos is missing", str(root), "an existing folder", "check the path")
    return Path(root)


def _refuse(failed: str, received: str, expected: str, remedy: str) -> NoReturn:
    raise DmgalError(failed, received=received, expected=expected, remedy=remedy)
