"""A data set as columns: where each video lies, its class, and the split of each class.

A class belongs to one split only, or few-shot results mean nothing; so the split is a column of classes, not of videos.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from ..errors import DmgalError
from .catalogs.catalog_columns import CatalogColumns
from .catalogs.list_formats import read_lists
from .catalogs.packed_names import PackedNames
from .catalogs.split_files import SPLITS, looks_like_split_file, read_rows, write_rows
from .catalogs.video_files import VIDEO_EXTENSIONS, VideoFinder, subfolders, videos_in
from .listing import NAMES_SHOWN, listed, printable

OnMissing = Callable[[str, str, str], None]


@dataclass(frozen=True, eq=False, repr=False)
class VideoCatalog:
    """The videos of a data set.

    Args:
        root: folder that the videos are relative to.
        videos: path of each video, ``(V,)``, with forward slashes; any sequence, kept as `PackedNames`.
        labels: class of each video, ``(V,)`` int64, in ``0..len(class_names)-1``.
        class_names: ``(num_classes,)``, all different.
        class_splits: "train", "val" or "test" for each class; None where nothing was said.
        reversal_pairs: classes that are each other's time reversal, if the data set has such.
    """

    root: Path
    videos: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_splits: tuple[str, ...] | None = None
    reversal_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.videos, PackedNames):
            object.__setattr__(self, "videos", PackedNames(self.videos))

    @classmethod
    def from_csv(
        cls, csv_path: str | os.PathLike[str], root: str | os.PathLike[str], on_missing: OnMissing | None = None
    ) -> VideoCatalog:
        """Read a split file with the columns ``split,class_name,video``, plain or gzipped.

        ``video`` is relative to ``root``; where it names neither a file nor a folder, the known extensions are tried.
        A column ``reversal`` may name the class that shows the same motion backward in time; a class that is its own
        reversal, or whose reversal is left empty, is in no pair. Other columns are ignored. Classes are numbered as
        they first appear.

        Args:
            csv_path: the split file.
            root: folder that the videos are relative to.
            on_missing: called with split, class and name of each video that is not there, which is then left out;
                None refuses such files.

        Raises:
            DmgalError: no file or root, a column missing, a bad row, a class in two splits or without a video, a video
                listed twice, or videos that are not there (all are counted, some named).
        """
        csv_path, root = Path(csv_path), _existing_folder(root)
        reversals: dict[str, str] = {}

        def rows() -> Iterator[tuple[str, str, str]]:
            for split, name, video, reversal in read_rows(csv_path):
                if reversal:
                    reversals[name] = reversal
                yield split, name, video

        find = VideoFinder(root).find
        return _gathered(root, _on_disk(rows(), find, root, str(csv_path), on_missing), reversals, str(csv_path))

    @classmethod
    def from_lists(
        cls,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str],
        list_format: str | None = None,
        on_missing: OnMissing | None = None,
    ) -> VideoCatalog:
        """Read a list as the field writes them, or a folder with a list for each split (see `list_formats`).

        A split is told by the lines (``train8/78687``), else by the list's name (``trainlist07.txt``); where neither
        does, the classes have none. Leading folders of a listed path that are not below ``root`` are dropped.

        Args:
            path: a list, plain or gzipped, or a folder of lists.
            root: folder that the videos are relative to.
            list_format: one of ``list_formats.FORMAT_NAMES``; None finds it by itself.
            on_missing: as of `from_csv`.

        Raises:
            DmgalError: as `from_csv`; or lines of no known format, or of several that fit equally well.
        """
        path, root = Path(path), _existing_folder(root)
        find = VideoFinder(root).find_below
        rows = read_lists(path, find, list_format)
        return _gathered(root, _on_disk(rows, find, root, str(path), on_missing), {}, str(path))

    @classmethod
    def from_split(
        cls,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str],
        list_format: str | None = None,
        on_missing: OnMissing | None = None,
    ) -> VideoCatalog:
        """`from_csv` where the first line names its columns (or seems to mean to), else `from_lists`."""
        if list_format is None and not Path(path).is_dir() and looks_like_split_file(Path(path)):
            return cls.from_csv(path, root, on_missing)
        return cls.from_lists(path, root, list_format, on_missing)

    @classmethod
    def from_folders(cls, root: str | os.PathLike[str]) -> VideoCatalog:
        """Take every folder for a class: ``root/{train,val,test}/class/video``, or without splits ``root/class/video``.

        A video is a file with a known extension or a folder of jpg or png frames; other files are left alone. Classes
        and videos are in natural order.

        Raises:
            DmgalError: no root, no classes, a class without a video, a class in two splits, a folder that cannot be
                looked into, or split folders beside other folders.
        """
        root = _existing_folder(root)
        try:
            return _gathered(root, _in_folders(root), {}, str(root))
        except OSError as error:
            raise DmgalError(
                f"cannot look into the folders of {root}",
                received=f"{printable(str(error.filename))}: {error.strerror}",
                expected="folders that this user may list",
                remedy="give yourself the right to read it, or move it away",
            ) from error

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        splits = {split: self.class_splits.count(split) for split in SPLITS} if self.class_splits else None
        return (
            f"VideoCatalog(root={str(self.root)!r}, videos={len(self)}, classes={len(self.class_names)}, "
            f"classes_by_split={splits}, reversal_pairs={len(self.reversal_pairs)})"
        )

    @property
    def _packed(self) -> PackedNames:
        assert isinstance(self.videos, PackedNames)  # since __post_init__
        return self.videos

    def path(self, video: int) -> Path:
        """Where a video lies."""
        return self.root / self.videos[video]

    def without(self, videos: Collection[str]) -> VideoCatalog:
        """The catalog less these videos, given by their paths; those that it does not hold are ignored.

        Raises:
            DmgalError: a class is left without a video.
        """
        left_out = frozenset(videos)
        kept = np.fromiter((video not in left_out for video in self.videos), dtype=bool, count=len(self))
        counts = np.bincount(self.labels[kept], minlength=len(self.class_names))
        empty = [self.class_names[c] for c in np.flatnonzero(counts == 0)]
        if empty:
            _refuse(
                f"classes of {self.root} are left without a video",
                f"{len(empty)} after leaving out {np.count_nonzero(~kept)} of {len(self)} videos: {listed(empty)}",
                "at least one video in each class",
                "replace the videos that cannot be read, or leave these classes out of the split",
            )
        return replace(self, videos=self._packed.take(np.flatnonzero(kept)), labels=self.labels[kept])

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
        return self._of_classes(kept, (name,) * len(kept))

    def with_split(self, split_of: Mapping[str, str]) -> VideoCatalog:
        """The classes that a mapping names, in the splits that it gives them; others are left out, with their videos.

        Args:
            split_of: "train", "val" or "test" by class name.
        """
        kept = [c for c, name in enumerate(self.class_names) if name in split_of]
        return self._of_classes(kept, tuple(split_of[self.class_names[c]] for c in kept))

    def _of_classes(self, kept: list[int], class_splits: tuple[str, ...]) -> VideoCatalog:
        renumbered = np.full(len(self.class_names), -1, dtype=np.int64)
        renumbered[kept] = np.arange(len(kept))
        labels = renumbered[self.labels]
        pairs = ((int(renumbered[a]), int(renumbered[b])) for a, b in self.reversal_pairs)
        return VideoCatalog(
            root=self.root,
            videos=self._packed.take(np.flatnonzero(labels >= 0)),
            labels=labels[labels >= 0],
            class_names=tuple(self.class_names[c] for c in kept),
            class_splits=class_splits,
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


def _gathered(
    root: Path, rows: Iterator[tuple[str, str, str | None]], reversals: Mapping[str, str], source: str
) -> VideoCatalog:
    columns = CatalogColumns(source)
    videos = columns.packed(rows)
    pairs = columns.reversal_pairs(reversals)  # known only now: the rows were read one by one
    return VideoCatalog(root, videos, columns.labels, columns.class_names, columns.class_splits, pairs)


def _on_disk(
    rows: Iterator[tuple[str, str, str]],
    find: Callable[[str], str | None],
    root: Path,
    source: str,
    on_missing: OnMissing | None,
) -> Iterator[tuple[str, str, str | None]]:
    """Rows with the videos as they lie on the disk; those that do not are refused together, at the end."""
    listed_videos, num_missing = 0, 0
    missing: list[str] = []
    for split, name, video in rows:
        found = find(video) if video else None
        listed_videos += bool(video)
        yield split, name, found
        if video and found is None:
            if on_missing is not None:
                on_missing(split, name, video)
            num_missing += 1
            missing += [video] if len(missing) < NAMES_SHOWN else []
    if num_missing and on_missing is None:
        _refuse(
            f"videos of {source} are missing",
            f"{num_missing} of {listed_videos} not found in {root}: {listed(missing, num_missing)}",
            f"each as a frame folder or a file, its extension given or one of {' '.join(VIDEO_EXTENSIONS)}",
            "check the root folder, take the missing videos out of the split file, or let 'dmgal prepare' find them",
        )


def _in_folders(root: Path) -> Iterator[tuple[str, str, str | None]]:
    folders = subfolders(root)
    classes_in = _below_lone_folders(root, folders)
    if classes_in is not None:
        _refuse(
            f"{root} holds no classes of videos",
            f"one folder, {printable(folders[0])}, and no video right in it",
            "root/class/video or root/{train,val,test}/class/video",
            f"did you mean the root {printable(str(classes_in))}?",
        )
    named_as_split = [name for name in folders if name in SPLITS]
    if named_as_split and len(named_as_split) < len(folders):
        _refuse(
            f"cannot tell splits from classes in {root}",
            f"the folders {listed(folders)}",
            f"either only {', '.join(SPLITS)}, or only classes",
            "move the other folders away, or write a split file and use it instead",
        )
    for split in [split for split in SPLITS if split in folders] or [""]:
        for name in subfolders(root / split) if split else folders:
            folder = f"{split}/{name}" if split else name
            yield split, name, None  # a class without a video is known, too
            for video in videos_in(root / folder):
                yield split, name, f"{folder}/{video}"


def _below_lone_folders(root: Path, folders: list[str]) -> Path | None:
    """The folder of the classes, where they lie below folders that hold nothing but one folder each."""
    folder = root
    while len(folders) == 1 and folders[0] not in SPLITS and not videos_in(folder / folders[0]):
        folder, folders = folder / folders[0], subfolders(folder / folders[0])
    if folder == root or not folders:
        return None
    return folder if folders[0] in SPLITS or any(videos_in(folder / name) for name in folders) else None


def _existing_folder(root: str | os.PathLike[str]) -> Path:
    if not Path(root).is_dir():
        _refuse("the folder of the videos is missing", str(root), "an existing folder", "check the path")
    return Path(root)


def _refuse(failed: str, received: str, expected: str, remedy: str) -> NoReturn:
    raise DmgalError(failed, received=received, expected=expected, remedy=remedy)
