"""Class splits of a run's data, and the bad videos known before the run from the report of ``dmgal prepare``.

A split drawn by the seed is saved in the run's split.csv. Drawn again after a class was added, it would differ, and
test classes could be among the trained ones. On other data, all classes that the run has not seen are novel.
Known bad videos are refused, or skipped and reported. Data sets handle videos that fail later
(``dmgal.videos.bad_videos``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import Dataset

from dmgal.errors import DmgalError
from dmgal.files import listed, open_regular, printable
from dmgal.names import comparable
from dmgal.recipes.run.config import DataConfig, GeneratedSet, Recipe
from dmgal.videos import READERS, VideoCatalog
from dmgal.videos.annotations.segment import file_and_span
from dmgal.videos.catalog.catalog import OnMissing
from dmgal.videos.catalog.files import frame_files
from dmgal.videos.catalog.groups import no_columns
from dmgal.videos.catalog.lists import SPLITS, has_split_column, read_rows
from dmgal.videos.check_log import read_report
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, Size, TestTransform
from dmgal.videos.generated import generate

if TYPE_CHECKING:
    from dmgal.videos.motion_world.clips import MotionWorld
    from dmgal.videos.moving_shapes.clips import MovingShapes

logger = logging.getLogger(__name__)
SAVED_SPLIT = "split.csv"
LEAST_CLASSES = 5
"""Number of classes below which the shares of a drawn split leave one without a class. All are then base classes."""


def has_split_file(data: DataConfig) -> bool:
    """Return True if the data itself fixes the split. Lists and annotations may leave it open."""
    if data.generate != "no":
        return True
    if data.split_file is None or data.list_format is not None:
        return False
    return data.split_file.is_file() and has_split_column(data.split_file)


def read_split(path: Path) -> dict[str, str]:
    """Return the split of every class by name, or an empty dict if there is no such file."""
    return {name: split for split, name, _, _ in read_rows(path)} if os.path.lexists(path) else {}


def read_saved_split(path: Path) -> dict[str, str]:
    """Return the split of every class as a run saved it. Raise a DmgalError if the file was cut."""
    split = read_split(path)
    if split:
        with open_regular(path) as file:
            file.seek(-1, os.SEEK_END)
            is_complete = file.read() == b"\n"
        if not is_complete:
            raise DmgalError(
                "The split of this run is incomplete.",
                received=f"{path} that ends within a line",
                expected="the complete split.csv that dmgal train wrote",
                remedy="Copy the run again.",
            )
    return split


def split_of(catalog: VideoCatalog) -> dict[str, str]:
    """Return the split of every class of a catalog by name."""
    return dict(zip(catalog.class_names, catalog.class_splits or (), strict=True))


def seen_classes(data: DataConfig, saved_split: Path) -> dict[str, str]:
    """Return the split of every class of a run's own data by name, or an empty dict if it is unknown."""
    if os.path.lexists(saved_split):
        return read_saved_split(saved_split)
    if data.generate != "no":
        settings = generated_settings(data.generate)(seed=data.seed)
        names = [one.name for one in settings.classes()]
        return {names[number]: split for split, numbers in settings.split().items() for number in numbers}
    return read_split(data.split_file) if data.split_file is not None and has_split_file(data) else {}


def with_saved_split(catalog: VideoCatalog, seed: int, path: Path | None) -> VideoCatalog:
    """Return the catalog with the saved split of a run, without classes unknown to the run, which are reported.

    Draw the split if there is no such file; very few classes are all base classes. All classes are novel if the file
    has none of them.
    """
    if path is None or not os.path.lexists(path):
        few = len(catalog.class_names) < LEAST_CLASSES
        drawn = catalog.with_seeded_split(seed, (1.0, 0.0, 0.0)) if few else catalog.with_seeded_split(seed)
        counts = ", ".join(f"{list(split_of(drawn).values()).count(split)} {split}" for split in SPLITS)
        logger.info("no splits in %s: its classes are drawn by seed %d, %s", printable(str(catalog.root)), seed, counts)
        return drawn
    saved = read_saved_split(path)
    new = [name for name in catalog.class_names if name not in saved]
    if len(new) == len(catalog.class_names):
        return with_novel_classes(catalog, saved)
    gone = sorted(set(saved) - set(catalog.class_names))
    for names, what in ((new, "new and left out"), (gone, "no longer there")):
        if names:
            _warn(f"classes by {path}, {what}: {listed(names)}")
    return catalog.with_split(saved)


def with_known_classes(catalog: VideoCatalog, path: Path) -> VideoCatalog:
    """Return the catalog with the saved split of a run, if any, for the classes in it. Others keep their split.

    A run that left classes out for validation has trained on the validation classes of its data.
    """
    own = split_of(catalog)
    known = {name: split for name, split in read_saved_split(path).items() if name in own}
    return catalog.with_split(own | known) if known else catalog


def with_novel_classes(catalog: VideoCatalog, seen: Mapping[str, str], same_for_all: bool = False) -> VideoCatalog:
    """Return a catalog without splits with all classes as test classes, but for the train and val classes of a run.

    With ``same_for_all``, these are test classes, too.
    """
    seen_alike = {} if same_for_all else {comparable(name): split for name, split in seen.items()}
    catalog = catalog.with_split({name: seen_alike.get(comparable(name), "test") for name in catalog.class_names})
    novel, total = list(split_of(catalog).values()).count("test"), len(catalog.class_names)
    root = printable(str(catalog.root))
    if same_for_all:
        _warn(f"no splits in {root}: all {total} classes are test classes, the same for all runs")
        return catalog
    reason = "the run has not seen them" if seen else "the classes that the run has seen are unknown"
    _warn(f"no splits in {root}: {novel} of {total} classes are novel (test), because {reason}")
    return catalog


def seen_before(catalog: VideoCatalog, split: str, seen: Mapping[str, str]) -> list[str]:
    """Return the classes of the split that a run has seen in its training, or in the choice of its weights.

    Names are compared as by `comparable`.
    """
    earlier = ("train",) if split == "val" else ("train", "val")
    seen_alike = {comparable(name): own for name, own in seen.items()}
    own_splits = split_of(catalog).items()
    return [name for name, own in own_splits if own == split and seen_alike.get(comparable(name)) in earlier]


def warn_of_seen(catalog: VideoCatalog, split: str, seen: Mapping[str, str]) -> None:
    """Warn if a run has seen classes of the split in its training, or in the choice of its weights."""
    names = seen_before(catalog, split, seen)
    if names:
        count = list(split_of(catalog).values()).count(split)
        _warn(f"{len(names)} of {count} {split} classes are not novel: the run has seen {listed(names)}")


def _warn(message: str) -> None:
    """Log a warning from rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(message)


SAMPLED_VIDEOS, SAMPLED_BYTES = 64, 2**16


def fingerprint(catalog: VideoCatalog) -> str:
    """Return a hash of the classes and videos, with the sizes and first bytes of up to 64 videos."""
    columns = catalog.class_names, catalog.labels.tolist(), catalog.videos
    digest = blake2b(repr(columns).encode(), digest_size=4)
    for video in range(0, len(catalog), -(-len(catalog) // SAMPLED_VIDEOS)):
        digest.update(_sample(catalog.path(video)))
    return digest.hexdigest()


def _sample(path: Path) -> bytes:
    path = Path(file_and_span(path)[0])
    try:
        files = [path / name for name in frame_files(path)] if path.is_dir() else [path]
        sizes = repr([file.stat().st_size for file in files]).encode()
        if not files or not files[0].is_file():
            return sizes
        with files[0].open("rb") as file:
            return sizes + file.read(SAMPLED_BYTES)
    except OSError:
        return b"unreadable"


def data_as_json(data: DataConfig, catalog: VideoCatalog) -> dict[str, object]:
    """Return what identifies the data of a catalog, without paths of this machine."""
    root, split_file = data.location
    return {
        "name": data.name,
        "root": printable(root.name),
        "split_file": split_file and printable(split_file.name),
        "seed": data.seed,
        **({} if data.group is None else {"group": data.group}),
        "classes": len(catalog.class_names),
        "videos": len(catalog),
        "fingerprint": fingerprint(catalog),
    }


def without_reported(catalog: VideoCatalog, data: DataConfig) -> VideoCatalog:
    """Return the catalog without the videos that are bad for clips of ``data.num_frames`` frames by the report.

    Raises:
        DmgalError: the report cannot be read, bad videos must not be skipped, or a class has no usable video.
    """
    if data.report is None:
        return catalog
    reported = read_report(data.report)
    reported_bad = {video for video, checked in reported.items() if checked.is_bad(data.num_frames)}
    bad = [video for video in catalog.videos if video in reported_bad] if reported_bad else []
    if not bad:
        return catalog
    if data.on_bad_video == "error":
        raise DmgalError(
            f"{len(bad)} of {len(catalog)} videos cannot be used.",
            received=listed([f"{video} ({reported[video].problem})" for video in bad]),
            expected=f"videos with at least {data.num_frames} decodable frames, or short videos without damage",
            remedy="Replace them and run dmgal prepare again, or pass --data.on-bad-video skip.",
        )
    log_skipped(len(bad), len(catalog), f"bad by {data.report}", bad)
    return catalog.without(bad)


def log_skipped(count: int, of: int, why: str, videos: Sequence[str], split: str = "") -> None:
    """Log one line about skipped videos, from rank 0 only."""
    _warn(f"skipped {count:,} of {of:,} {split}videos, {why}: {listed(videos)}")


def build_catalog(
    data: DataConfig,
    progress: bool = True,
    saved_split: Path | None = None,
    seen: Mapping[str, str] | None = None,
    same_for_all: bool = False,
) -> VideoCatalog:
    """Return the catalog of all splits, without the videos that ``on_bad_video`` skips.

    The ``saved_split`` of a run, if any, goes before that of the data. Without both, the seed assigns the classes. With
    the classes that a run has ``seen`` in other data, all others are novel, or with ``same_for_all`` all of them.

    Raises:
        DmgalError: videos are missing or bad and must not be skipped, or a class has no usable video.
    """
    missing: list[str] = []
    on_missing = (lambda split, class_name, video: missing.append(video)) if data.on_bad_video == "skip" else None
    catalog = without_reported(list_catalog(data, progress, on_missing), data)
    if missing:
        log_skipped(len(missing), len(catalog) + len(missing), "not there", missing)
    if catalog.class_splits is not None:
        return catalog if saved_split is None else with_known_classes(catalog, saved_split)
    if seen is None:
        return with_saved_split(catalog, data.seed, saved_split)
    return with_novel_classes(catalog, seen, same_for_all)


def generated_settings(name: GeneratedSet) -> type[MovingShapes] | type[MotionWorld]:
    """Return the settings of a generated data set. Its drawing is imported only if it is needed."""
    if name == "moving_shapes":
        from dmgal.videos.moving_shapes.clips import MovingShapes

        return MovingShapes
    from dmgal.videos.motion_world.clips import MotionWorld

    return MotionWorld


def list_catalog(data: DataConfig, progress: bool = True, on_missing: OnMissing | None = None) -> VideoCatalog:
    """Return the catalog of a split file, lists, a reader or folders. Generate the data set first if wanted."""
    is_pattern = data.group is not None and "(" in data.group
    column = None if is_pattern else data.group
    if data.generate != "no":
        split_file = generate(generated_settings(data.generate)(seed=data.seed), data.root, progress=progress)
        catalog = VideoCatalog.from_csv(split_file, data.root, on_missing, column)
    elif data.split_file is not None:
        catalog = VideoCatalog.from_split(data.split_file, data.root, data.list_format, on_missing, column)
    elif column is not None:
        raise no_columns(column, str(data.root))
    elif data.name in READERS:
        catalog = READERS[data.name](data.root)
    else:
        catalog = VideoCatalog.from_folders(data.root)
    return catalog.with_groups(data.group) if is_pattern and data.group is not None else catalog


def test_transform(recipe: Recipe, size: Size) -> TestTransform:
    """Return the transform of test clips for a backbone with this image size."""
    return TestTransform(size, resize=recipe.data.test_resize)


def test_clips(catalog: VideoCatalog, recipe: Recipe, size: tuple[int, int]) -> VideoDataset | RememberedClips:
    """Return the fixed test clip of every video. Its ``bad_videos`` records videos that could not be read."""
    data = recipe.data
    source = ClipSource(catalog, data.decoder, data.store, on_bad_video=data.on_bad_video)
    videos = VideoDataset(source, FrameSampler(data.num_frames, test_transform(recipe, size)))
    return RememberedClips(videos) if data.keep_in_memory else videos


class RememberedClips(Dataset[Tensor]):
    """A cache of clips in memory, for validations that read the same clips repeatedly."""

    def __init__(self, videos: VideoDataset) -> None:
        self.videos = videos
        self.bad_videos = videos.bad_videos
        self._clips: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, video: int) -> Tensor:
        if video not in self._clips:
            self._clips[video] = self.videos[video]
        return self._clips[video]
