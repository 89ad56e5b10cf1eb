"""Class splits of a run's data, and the bad videos known before the run from the report of ``dmgal prepare``.

A split drawn by the seed is saved in the run's split.csv. Drawn again after a class was added, it would differ, and
test classes could be among the trained ones. Known bad videos are refused, or skipped and reported. Data sets handle
videos that fail later (``dmgal.videos.bad_videos``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import Dataset

from dmgal.errors import DmgalError
from dmgal.files import listed
from dmgal.recipes.run.config import DataConfig, GeneratedSet, Recipe
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.catalog import OnMissing
from dmgal.videos.catalog.lists import looks_like_split_file, read_rows
from dmgal.videos.check_log import read_report
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, TestTransform
from dmgal.videos.generated import generate

if TYPE_CHECKING:
    from dmgal.videos.motion_world.clips import MotionWorld
    from dmgal.videos.moving_shapes.clips import MovingShapes

logger = logging.getLogger(__name__)
SAVED_SPLIT = "split.csv"


def has_split_file(data: DataConfig) -> bool:
    """Return True if the data itself fixes the split. Lists may leave it open."""
    if data.generate != "no":
        return True
    if data.split_file is None or data.list_format is not None:
        return False
    return data.split_file.is_file() and looks_like_split_file(data.split_file)


def read_split(path: Path) -> dict[str, str]:
    """Return the split of every class by name, or an empty dict if there is no such file."""
    return {name: split for split, name, _, _ in read_rows(path)} if path.is_file() else {}


def split_of(catalog: VideoCatalog) -> dict[str, str]:
    """Return the split of every class of a catalog by name."""
    return dict(zip(catalog.class_names, catalog.class_splits or (), strict=True))


def with_saved_split(catalog: VideoCatalog, seed: int, path: Path | None) -> VideoCatalog:
    """Return the catalog with the saved split of a run, without classes unknown to the run, which are reported.

    Draw the split if there is no such file, or if it has none of the classes.
    """
    saved = read_split(path) if path is not None else {}
    new = [name for name in catalog.class_names if name not in saved]
    if len(new) == len(catalog.class_names):
        return catalog.with_seeded_split(seed)
    gone = sorted(set(saved) - set(catalog.class_names))
    if os.environ.get("RANK", "0") == "0":
        for names, what in ((new, "new and left out"), (gone, "no longer there")):
            if names:
                logger.warning("classes by %s, %s: %s", path, what, listed(names))
    return catalog.with_split(saved)


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
    if os.environ.get("RANK", "0") == "0":
        logger.warning(f"skipped {count:,} of {of:,} {split}videos, {why}: {listed(videos)}")


def build_catalog(data: DataConfig, progress: bool = True, saved_split: Path | None = None) -> VideoCatalog:
    """Return the catalog of all splits, without the videos that ``on_bad_video`` skips.

    If the data has no split, classes are assigned by the seed, or as in the ``saved_split`` of a run.

    Raises:
        DmgalError: videos are missing or bad and must not be skipped, or a class has no usable video.
    """
    missing: list[str] = []
    on_missing = (lambda split, class_name, video: missing.append(video)) if data.on_bad_video == "skip" else None
    catalog = without_reported(list_catalog(data, progress, on_missing), data)
    if missing:
        log_skipped(len(missing), len(catalog) + len(missing), "not there", missing)
    return catalog if catalog.class_splits is not None else with_saved_split(catalog, data.seed, saved_split)


def generated_settings(name: GeneratedSet) -> type[MovingShapes] | type[MotionWorld]:
    """Return the settings of a generated data set. Its drawing is imported only if it is needed."""
    if name == "moving_shapes":
        from dmgal.videos.moving_shapes.clips import MovingShapes

        return MovingShapes
    from dmgal.videos.motion_world.clips import MotionWorld

    return MotionWorld


def list_catalog(data: DataConfig, progress: bool = True, on_missing: OnMissing | None = None) -> VideoCatalog:
    """Return the catalog of a split file, lists or folders. Generate the data set first if the config says so."""
    if data.generate != "no":
        split_file = generate(generated_settings(data.generate)(seed=data.seed), data.root, progress=progress)
        return VideoCatalog.from_csv(split_file, data.root, on_missing)
    if data.split_file is not None:
        return VideoCatalog.from_split(data.split_file, data.root, data.list_format, on_missing)
    return VideoCatalog.from_folders(data.root)


def test_transform(recipe: Recipe, size: tuple[int, int]) -> TestTransform:
    """Return the transform of test clips for a backbone with this image size."""
    return TestTransform(size[0], resize=recipe.data.test_resize)


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
