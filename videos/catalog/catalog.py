"""A data set as columns: the path and class of each video, and the split of each class.

A class belongs to exactly one split, because few-shot results are meaningless otherwise. The split is therefore a
column of classes, not of videos.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from ...errors import DmgalError
from ...files import NAMES_SHOWN, listed, printable
from .columns import collect_columns, pair_classes
from .files import SHOWN_EXTENSIONS, VideoFinder, subfolders, videos_in
from .groups import groups_of, no_columns
from .lists import COLUMNS, SPLITS, looks_like_split_file, read_column, read_lists, read_rows, write_rows

OnMissing = Callable[[str, str, str], None]


@dataclass(frozen=True, eq=False, repr=False)
class VideoCatalog:
    """The videos of a data set.

    Args:
        root: folder that the videos are relative to.
        videos: path of each video, ``(V,)``, with forward slashes; any sequence, stored as a tuple.
        labels: class of each video, ``(V,)`` int64, in ``0..len(class_names)-1``.
        class_names: ``(num_classes,)``, all different.
        class_splits: "train", "val" or "test" for each class; None if the splits are unknown.
        reversal_pairs: pairs of classes that are each other's time reversal; empty if the data set has none.
        groups: group of each video, ``(V,)``, such as the person that it shows; None if unknown.
    """

    root: Path
    videos: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_splits: tuple[str, ...] | None = None
    reversal_pairs: tuple[tuple[int, int], ...] = ()
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "videos", tuple(self.videos))

    @classmethod
    def from_csv(
        cls,
        csv_path: str | os.PathLike[str],
        root: str | os.PathLike[str],
        on_missing: OnMissing | None = None,
        group: str | None = None,
    ) -> VideoCatalog:
        """Read a split file with the columns ``split,class_name,video``, plain or gzipped.

        ``video`` is relative to ``root``. Only if it names neither a file nor a folder, the known extensions are tried.
        An optional column ``reversal`` names the class that shows the same motion backward in time. A class that is
        its own reversal, or whose reversal is empty, has no pair. Other columns are ignored. Classes are numbered in
        order of first appearance.

        Args:
            csv_path: the split file.
            root: the folder that the videos are relative to.
            on_missing: called with split, class and name of each missing video, which is then skipped; None raises an
                error for missing videos.
            group: column with the group of each video, see ``groups``.

        Raises:
            DmgalError: no file or root, a column missing, a bad row, a class in two splits, under two spellings or
                without a video, a video without a group or listed twice, also if by a link or another spelling of its
                path, or missing videos (all are counted, some named).
        """
        csv_path, root = Path(csv_path), _existing_folder(root)
        reversals: dict[str, str] = {}
        groups: dict[str, str] = {}
        finder = VideoFinder(root)

        def rows() -> Iterator[tuple[str, str, str]]:
            values = itertools.repeat("") if group is None else read_column(csv_path, group)
            for (split, name, video, reversal), value in zip(read_rows(csv_path), values, strict=False):
                if reversal:
                    reversals[name.strip()] = reversal
                groups[video] = value
                yield split, name, video

        def find(video: str) -> str | None:
            path = finder.find(video)
            if path is not None:
                groups[path] = groups[video]
            return path

        videos_on_disk = _resolve_videos(rows(), find, root, str(csv_path), on_missing)
        catalog = _catalog_from_rows(root, videos_on_disk, reversals, str(csv_path))
        return catalog if group is None else catalog.with_groups([groups[video] for video in catalog.videos])

    @classmethod
    def from_lists(
        cls,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str],
        list_format: str | None = None,
        on_missing: OnMissing | None = None,
    ) -> VideoCatalog:
        """Read a list in one of the field's formats, or a folder with one list for each split (see `read_lists`).

        The lines name the split (``train8/78687``), or else the name of the list does (``trainlist07.txt``). If neither
        does, the classes have no split. Leading folders of a listed path that are not below ``root`` are dropped.

        Args:
            path: a list, plain or gzipped, or a folder of lists.
            root: folder that the videos are relative to.
            list_format: one of `FORMAT_NAMES`; None detects the format.
            on_missing: see `from_csv`.

        Raises:
            DmgalError: see `from_csv`; or no known format fits the lines, or several fit equally well.
        """
        path, root = Path(path), _existing_folder(root)
        find = VideoFinder(root).find_below
        rows = read_lists(path, find, list_format)
        return _catalog_from_rows(root, _resolve_videos(rows, find, root, str(path), on_missing), {}, str(path))

    @classmethod
    def from_split(
        cls,
        path: str | os.PathLike[str],
        root: str | os.PathLike[str],
        list_format: str | None = None,
        on_missing: OnMissing | None = None,
        group: str | None = None,
    ) -> VideoCatalog:
        """Read a split file by `from_csv` if its first line names a column of such a file, else by `from_lists`.

        Raises:
            DmgalError: see `from_csv`, or a column of groups of a list, which has no columns.
        """
        if list_format is None and not Path(path).is_dir() and looks_like_split_file(Path(path)):
            return cls.from_csv(path, root, on_missing, group)
        if group is not None:
            raise no_columns(group, str(path))
        return cls.from_lists(path, root, list_format, on_missing)

    @classmethod
    def from_folders(cls, root: str | os.PathLike[str]) -> VideoCatalog:
        """Read folders as classes: ``root/{train,val,test}/class/video``, or without splits ``root/class/video``.

        A video is a file with a known extension, or a folder of jpg or png frames. Other files are ignored. Classes
        and videos are in natural order.

        Raises:
            DmgalError: no root, no classes, a class without a video, a class in two splits, a folder that cannot be
                listed, or split folders beside other folders.
        """
        root = _existing_folder(root)
        try:
            return _catalog_from_rows(root, _rows_of_folders(root), {}, str(root))
        except OSError as error:
            raise DmgalError(
                f"The folders of {root} cannot be listed.",
                received=f"{printable(str(error.filename))}: {error.strerror}",
                expected="folders that this user may list",
                remedy="Grant yourself read permission, or move the folder away.",
            ) from error

    def __len__(self) -> int:
        return len(self.videos)

    def __repr__(self) -> str:
        splits = {split: self.class_splits.count(split) for split in SPLITS} if self.class_splits else None
        return (
            f"VideoCatalog(root={str(self.root)!r}, videos={len(self)}, classes={len(self.class_names)}, "
            f"classes_by_split={splits}, reversal_pairs={len(self.reversal_pairs)})"
        )

    def path(self, video: int) -> Path:
        """Return the path of a video on disk."""
        return self.root / self.videos[video]

    def without(self, videos: Collection[str]) -> VideoCatalog:
        """Return the catalog without these videos, given by their paths. Unknown paths are ignored.

        Raises:
            DmgalError: a class is left without a video.
        """
        removed = frozenset(videos)
        stays = np.array([video not in removed for video in self.videos], dtype=bool)
        counts = np.bincount(self.labels[stays], minlength=len(self.class_names))
        empty = [self.class_names[c] for c in np.flatnonzero(counts == 0)]
        if empty:
            raise DmgalError(
                f"Classes of {self.root} are left without a video.",
                received=f"{len(empty)} after leaving out {(~stays).sum()} of {len(self)} videos: {listed(empty)}",
                expected="at least one video in each class",
                remedy="Replace the videos that cannot be read, or remove these classes from the split.",
            )
        groups = self.groups and tuple(compress(self.groups, stays))
        return replace(self, videos=tuple(compress(self.videos, stays)), labels=self.labels[stays], groups=groups)

    def split(self, name: str) -> VideoCatalog:
        """Return the classes of one split, renumbered from 0, with their videos and complete reversal pairs.

        Raises:
            DmgalError: the catalog has no splits, or none of this name.
        """
        classes = [c for c, split in enumerate(self.class_splits or ()) if split == name]
        if not classes:
            present = sorted(set(self.class_splits or ()), key=SPLITS.index)
            raise DmgalError(
                f"The catalog of {self.root} has no split {name!r}.",
                received=f"the splits {', '.join(present)}" if present else "classes without a split",
                expected=f"one of {', '.join(SPLITS)}, with at least one class",
                remedy="Choose another split, or create one by catalog.with_seeded_split(seed).",
            )
        return self._select_classes(classes, (name,) * len(classes))

    def with_split(self, split_of: Mapping[str, str]) -> VideoCatalog:
        """Return the classes that a mapping names, with their videos, in the split "train", "val" or "test" of each."""
        classes = [c for c, name in enumerate(self.class_names) if name in split_of]
        return self._select_classes(classes, tuple(split_of[self.class_names[c]] for c in classes))

    def _select_classes(self, classes: list[int], class_splits: tuple[str, ...]) -> VideoCatalog:
        new_number = np.full(len(self.class_names), -1, dtype=np.int64)
        new_number[classes] = np.arange(len(classes))
        labels = new_number[self.labels]
        pairs = ((int(new_number[a]), int(new_number[b])) for a, b in self.reversal_pairs)
        return VideoCatalog(
            root=self.root,
            videos=tuple(compress(self.videos, labels >= 0)),
            labels=labels[labels >= 0],
            class_names=tuple(self.class_names[c] for c in classes),
            class_splits=class_splits,
            reversal_pairs=tuple((a, b) for a, b in pairs if a >= 0 and b >= 0),
            groups=self.groups and tuple(compress(self.groups, labels >= 0)),
        )

    def with_groups(self, groups: str | Sequence[str]) -> VideoCatalog:
        """Return the catalog with the group of each video, see `groups_of`."""
        return replace(self, groups=groups_of(groups, self.videos))

    def with_seeded_split(self, seed: int, fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)) -> VideoCatalog:
        """Return the same videos with classes assigned to splits at random. Reversal pairs stay in one split.

        Args:
            seed: the same seed gives the same split.
            fractions: share of the classes in train, val and test; 0 omits a split.

        Raises:
            DmgalError: fractions that do not add up to 1, or a split that gets no class.
        """
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise DmgalError(
                "The classes cannot be split.",
                received=f"fractions={fractions}",
                expected="shares that add up to 1",
                remedy="Change the fractions.",
            )
        paired = {c for pair in self.reversal_pairs for c in pair}
        groups = [*self.reversal_pairs, *((c,) for c in range(len(self.class_names)) if c not in paired)]
        borders = np.cumsum(fractions)
        class_splits = [""] * len(self.class_names)
        num_assigned = 0
        for index in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
            group = groups[index]
            middle = (num_assigned + len(group) / 2) / len(self.class_names)
            for c in group:
                class_splits[c] = SPLITS[min(int(np.searchsorted(borders, middle)), 2)]
            num_assigned += len(group)
        empty = [name for name, share in zip(SPLITS, fractions, strict=True) if share and name not in class_splits]
        if empty:
            raise DmgalError(
                f"There is no class left for {' and '.join(empty)}.",
                received=f"{len(self.class_names)} classes and fractions={fractions}",
                expected="at least one class in each split",
                remedy="Add classes, or change the fractions.",
            )
        return replace(self, class_splits=tuple(class_splits))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a split file that `from_csv` reads back, gzipped if the name ends in ``.gz``.

        Groups are in the column ``group``.

        Raises:
            DmgalError: the catalog has no splits.
        """
        if self.class_splits is None:
            raise DmgalError(
                "The split file cannot be written.",
                received=f"the catalog of {self.root}, without splits",
                expected="classes that belong to train, val or test",
                remedy="Create a split by catalog.with_seeded_split(seed).",
            )
        splits, names = self.class_splits, self.class_names
        reversal = {a: names[b] for a, b in self.reversal_pairs} | {b: names[a] for a, b in self.reversal_pairs}
        labeled_videos = zip(self.videos, self.labels.tolist(), strict=True)
        rows = ((splits[c], names[c], video, reversal.get(c, "")) for video, c in labeled_videos)
        if self.groups is None:
            write_rows(Path(path), rows)
        else:
            grouped = ((*row, group) for row, group in zip(rows, self.groups, strict=True))
            write_rows(Path(path), grouped, (*COLUMNS, "group"))


def _catalog_from_rows(
    root: Path, rows: Iterator[tuple[str, str, str | None]], reversals: Mapping[str, str], source: str
) -> VideoCatalog:
    """Return the catalog of rows. Reading the rows may fill ``reversals``."""
    videos, labels, class_names, class_splits = collect_columns(rows, source, root)
    pairs = pair_classes(class_names, reversals, source)
    return VideoCatalog(root, videos, labels, class_names, class_splits, pairs)


def _resolve_videos(
    rows: Iterator[tuple[str, str, str]],
    find: Callable[[str], str | None],
    root: Path,
    source: str,
    on_missing: OnMissing | None,
) -> Iterator[tuple[str, str, str | None]]:
    """Yield the rows with the videos' paths on disk, and None for missing videos.

    Missing videos are reported together in one error at the end, or one by one to ``on_missing``.
    """
    num_listed, num_missing = 0, 0
    shown: list[str] = []
    for split, name, video in rows:
        path = find(video) if video else None
        if video:
            num_listed += 1
        yield split, name, path
        if video and path is None:
            if on_missing is not None:
                on_missing(split, name, video)
            num_missing += 1
            if len(shown) < NAMES_SHOWN:
                shown.append(video)
    if num_missing and on_missing is None:
        raise DmgalError(
            f"Videos of {source} are missing.",
            received=f"{num_missing} of {num_listed} not found in {root}: {listed(shown, num_missing)}",
            expected=f"each as a frame folder or a file, with its extension or one of {SHOWN_EXTENSIONS}",
            remedy="Check the root folder, remove the videos from the split file, or let 'dmgal prepare' find them.",
        )


def _rows_of_folders(root: Path) -> Iterator[tuple[str, str, str | None]]:
    folders = subfolders(root)
    class_root = _class_root_below(root, folders)
    if class_root is not None:
        raise DmgalError(
            f"{root} has no classes of videos.",
            received=f"one folder, {printable(folders[0])}, and no video directly in it",
            expected="root/class/video or root/{train,val,test}/class/video",
            remedy=f"Did you mean the root {printable(str(class_root))}?",
        )
    split_of = {name: name.lower() for name in folders if name.lower() in SPLITS}
    if len(split_of) < len(folders):
        split_of = {}  # a class may be named Test
    if not split_of and not set(SPLITS).isdisjoint(folders):
        raise DmgalError(
            f"Splits and classes cannot be distinguished in {root}.",
            received=f"the folders {listed(folders)}",
            expected=f"either only {', '.join(SPLITS)}, or only classes",
            remedy="Move the other folders away, or write a split file and use it instead.",
        )
    for part in sorted(split_of, key=lambda part: SPLITS.index(split_of[part])) or [""]:
        for name in subfolders(root / part) if part else folders:
            folder, split = (f"{part}/{name}", split_of[part]) if part else (name, "")
            yield split, name, None  # also registers a class without videos
            for video in videos_in(root / folder):
                yield split, name, f"{folder}/{video}"


def _class_root_below(root: Path, folders: list[str]) -> Path | None:
    """Return the folder of the classes if it is below a chain of folders with one subfolder each, else None."""
    folder = root
    while len(folders) == 1 and folders[0].lower() not in SPLITS and not videos_in(folder / folders[0]):
        folder, folders = folder / folders[0], subfolders(folder / folders[0])
    if folder == root or not folders:
        return None
    return folder if folders[0].lower() in SPLITS or any(videos_in(folder / name) for name in folders) else None


def _existing_folder(root: str | os.PathLike[str]) -> Path:
    if not Path(root).is_dir():
        raise DmgalError(
            "The folder of the videos is missing.",
            received=str(root),
            expected="an existing folder",
            remedy="Check the path.",
        )
    return Path(root)
