"""Preparation of a data set: find or list its videos, check them, and write the files that recipes need."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from dmgal.errors import DmgalError
from dmgal.files import listed as listed_names
from dmgal.files import printable, write_text
from dmgal.parallel import available_cores
from dmgal.progress import progress_bar
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import list_catalog
from dmgal.recipes.run.layers import Tree, from_mapping, merge_layers, read_layer, to_mapping
from dmgal.videos import READERS, VideoCatalog
from dmgal.videos.catalog.files import other_files, subfolders, videos_in
from dmgal.videos.catalog.lists import SPLITS, read_rows, standard_split_file, write_rows
from dmgal.videos.catalog.matching import Matches, match_videos
from dmgal.videos.check_log import CheckLog, write_report
from dmgal.videos.checking import CheckedVideo, check_videos

logger = logging.getLogger(__name__)

LOG, REPORT, EQUAL = "checked.jsonl", "report.csv", "equal.csv"
SECONDS_BETWEEN_FLUSHES = 1.0
OWN_DATA = {"data": {"flip": False, "crop_scale": [0.5, 1.0], "color_jitter": 0.2, "test_resize": 1.142857}}
"""Base layer for data sets without a layer: as the bundled ones, but not mirrored, because labels are unknown."""
TRANSFORMS = ("flip", "may_flip", "crop_scale", "color_jitter", "test_resize")
Row = tuple[str, str, str]
"""Split, class name, video."""


@dataclass(frozen=True)
class Listed:
    """Videos to check below a root, and their catalog if they have classes."""

    root: Path
    videos: Sequence[str]
    catalog: VideoCatalog | None
    missing: Sequence[Row] = ()
    """Videos of the split file that do not exist."""

    @property
    def split(self) -> VideoCatalog | None:
        """The catalog, or None if its classes have no splits."""
        return self.catalog if self.catalog is not None and self.catalog.class_splits is not None else None


@dataclass(frozen=True)
class EqualVideos:
    """Videos with equal content. Without splits or classes these are empty."""

    rows: Sequence[Row]

    @classmethod
    def of(cls, listed: Listed, group: Sequence[int]) -> EqualVideos:
        """Return the videos of a group of indices."""
        catalog = listed.catalog
        if catalog is None:
            return cls([("", "", listed.videos[index]) for index in group])
        labels = [int(catalog.labels[index]) for index in group]
        splits, names = catalog.class_splits or ("",) * len(catalog.class_names), catalog.class_names
        return cls([(splits[c], names[c], catalog.videos[index]) for c, index in zip(labels, group, strict=True)])

    @property
    def spread(self) -> str:
        """The harm of the copies: "across splits", "across classes" or "within a class"."""
        if len({split for split, _, _ in self.rows}) > 1:
            return "across splits"
        return "across classes" if len({name for _, name, _ in self.rows}) > 1 else "within a class"


def prepared_data(
    layers: Sequence[str],
    dataset: str | None = None,
    root: Path | None = None,
    split_file: Path | None = None,
    list_format: str | None = None,
) -> DataConfig:
    """Return the data config of layers and options, on top of the defaults for the data set.

    Raises:
        DmgalError: the location of the videos is missing, or there are two splits.
    """
    if root is None and not layers:
        raise DmgalError(
            "The location of the videos is missing.",
            received="neither --root nor a layer",
            expected="dmgal prepare --root FOLDER, or a layer such as data/moving_shapes",
            remedy="See dmgal prepare --help.",
        )
    if dataset is not None and split_file is not None:
        raise DmgalError(
            "Only one split can be used.",
            received=f"--dataset {dataset} and --split-file {split_file}",
            expected="one of the two",
            remedy="Remove one of them.",
        )
    base: list[Tree] = []
    if dataset:
        base = [read_layer(f"data/{dataset}")]
    elif not layers:
        base = [OWN_DATA]
    data = from_mapping(Recipe, merge_layers([*base, *map(read_layer, layers)])).data
    return replace(
        data,
        root=root or data.root,
        split_file=split_file or data.split_file,
        list_format=list_format or data.list_format,
    )


def list_videos(data: DataConfig, progress: bool) -> Listed:
    """Return the videos of the split file or folders. A folder without class folders has no catalog."""
    has_classes = data.split_file is not None or data.generate != "no" or data.name in READERS
    if not has_classes and data.root.is_dir() and not subfolders(data.root):
        videos = tuple(videos_in(data.root))
        if len(videos):
            logger.info("%s videos in %s, without class folders: they are only checked", f"{len(videos):,}", data.root)
            return Listed(data.root, videos, None)
    missing: list[Row] = []
    catalog = list_catalog(data, progress, lambda *row: missing.append(row))
    if not has_classes:
        counts = other_files(data.root, {video.rpartition("/")[0] for video in catalog.videos})
        kinds = [f"{count:,} {extension or 'without an extension'}" for extension, count in counts.most_common()]
        if kinds:
            logger.info("left out of the class folders, because they are not videos: %s", listed_names(kinds))
    return Listed(data.root, catalog.videos, catalog, missing)


def write_lists(found: FoundData | Listed, out: Path) -> tuple[Listed, dict[str, object]]:
    """Write split.csv, found.csv and missing.csv. Return the videos to check, and the counts of the summary."""
    missing = found.missing
    counts: dict[str, object] = {"videos": 0, "missing": len(missing)}
    if isinstance(found, FoundData):
        counts["found"] = found.per_split
        catalog = found.write(out)
        listed = Listed(found.root, catalog.videos, catalog)
    else:
        listed = found
        if listed.split is not None:
            listed.split.to_csv(out / "split.csv")
    counts["videos"] = len(listed.videos)
    write_rows(out / "missing.csv", missing, ("split", "class_name", "video"))
    if missing:
        logger.info("%s listed videos are missing, see %s", f"{len(missing):,}", out / "missing.csv")
    return listed, counts


def check(
    listed: Listed,
    out: Path,
    workers: int | None = None,
    seconds_per_video: float = 120.0,
    recheck: bool = False,
    progress: bool = True,
) -> tuple[dict[str, CheckedVideo], list[EqualVideos]]:
    """Decode all videos not checked before. Write report.csv and equal.csv.

    Returns:
        The videos with a problem, and the groups of videos with equal content.
    """
    log = CheckLog(out / LOG, listed.root, listed.videos)
    if recheck:
        log.path.unlink(missing_ok=True)
    elif log.path.exists() and not log.is_of_root:
        logger.info("the earlier check was of another folder, so every video is checked again")
    done = log.done()
    unchecked = np.flatnonzero(~done)
    if done.any():
        logger.info("%s of %s videos were checked before", f"{int(done.sum()):,}", f"{len(done):,}")
    workers = min(workers or available_cores(), len(unchecked))
    paths = ((index, listed.root / listed.videos[index]) for index in map(int, unchecked))
    flushed, initial = time.monotonic(), int(done.sum())
    bar = progress_bar(progress=progress, total=len(done), initial=initial, desc="check", unit="video")
    with bar, log.writer() as file:
        for index, checked in check_videos(paths, workers, seconds_per_video) if len(unchecked) else ():
            log.write(file, index, checked)
            if time.monotonic() - flushed > SECONDS_BETWEEN_FLUSHES:
                file.flush()
                flushed = time.monotonic()
            bar.update()
    write_report(out / REPORT, log.problems)
    equal = [EqualVideos.of(listed, group) for group in log.equal_contents()]
    rows = ((str(number), *row) for number, videos in enumerate(equal, start=1) for row in videos.rows)
    write_rows(out / EQUAL, rows, ("group", "split", "class_name", "video"))
    return log.problems, equal


def checked_before(listed: Listed, out: Path) -> bool:
    """Return True if there is a report of an earlier check of the same folder."""
    return (out / REPORT).exists() and CheckLog(out / LOG, listed.root, ()).is_of_root


def write_layer(data: DataConfig, listed: Listed, out: Path, with_report: bool) -> None:
    """Write data.yaml, a layer with all data settings. Its paths are absolute, so that it works from any folder."""
    layer: dict[str, object] = {"name": data.name} if data.name else {}
    layer |= {"root": str(listed.root.resolve()), "generate": "no"}
    if listed.split is not None:
        layer["split_file"] = str((out / "split.csv").resolve())
    if with_report:
        layer["report"] = str((out / REPORT).resolve())
    layer |= {key: to_mapping(getattr(data, key)) for key in TRANSFORMS}
    head = "# Written by dmgal prepare: a layer for dmgal train with the data's location and the sampling of clips.\n"
    write_text(out / "data.yaml", head + yaml.safe_dump({"data": layer}, sort_keys=False))


@dataclass(frozen=True)
class FoundData:
    """A standard split matched to the videos below a folder. ``rows`` are all its videos."""

    name: str
    root: Path
    rows: Sequence[Row]
    matches: Matches

    @cached_property
    def found(self) -> list[Row]:
        """Rows with existing videos."""
        return [row for row, path in zip(self.rows, self.matches.paths, strict=True) if path is not None]

    @cached_property
    def missing(self) -> list[Row]:
        """Rows without videos."""
        return [row for row, path in zip(self.rows, self.matches.paths, strict=True) if path is None]

    @property
    def per_split(self) -> dict[str, int]:
        """Number of videos found per split."""
        return {split: sum(row[0] == split for row in self.found) for split in SPLITS}

    def per_class(self) -> list[tuple[str, str, int, int]]:
        """Return split, class, and the numbers of listed and found videos."""
        listed_counts = Counter((split, name) for split, name, _ in self.rows)
        found_counts = Counter((split, name) for split, name, _ in self.found)
        return [(*key, count, found_counts[key]) for key, count in listed_counts.items()]

    def write(self, out: Path) -> VideoCatalog:
        """Write split.csv with the found videos and found.csv with the counts. Return the catalog of split.csv."""
        counts = ((split, name, str(wanted), str(there)) for split, name, wanted, there in self.per_class())
        write_rows(out / "found.csv", counts, ("split", "class_name", "listed", "found"))
        row_paths = zip(self.rows, self.matches.paths, strict=True)
        write_rows(out / "split.csv", ((split, name, path, "") for (split, name, _), path in row_paths if path))
        return VideoCatalog.from_csv(out / "split.csv", self.root)


def find_dataset(name: str, root: Path) -> FoundData:
    """Find the videos of a standard split below a folder.

    Raises:
        DmgalError: the folder does not exist, or has none of the videos.
    """
    if not root.is_dir():
        raise DmgalError(
            "The folder of the videos is missing.",
            received=str(root),
            expected="an existing folder",
            remedy="Check --root.",
        )
    rows = [(split, class_name, video) for split, class_name, video, _ in read_rows(standard_split_file(name))]
    data = FoundData(name, root, rows, match_videos([(class_name, video) for _, class_name, video in rows], root))
    if not data.found:
        raise DmgalError(
            f"No video of {name} was found.",
            received=f"{describe_others(data.matches)} in {root}",
            expected=f"files or folders of frames named such as {', '.join(video for *_, video in rows[:3])}",
            remedy="Check --root and --dataset.",
        )
    return data


def describe_others(matches: Matches) -> str:
    """Describe the videos of a folder that the split does not list, as the start of a sentence."""
    number, examples = matches.num_other, ", ".join(map(printable, matches.examples))
    verb = "is" if number == 1 else "are"
    return f"{number:,} other video{'' if number == 1 else 's'}{f', such as {examples},' if examples else ''} {verb}"
