"""Options that replace data settings of a finished run, such as the folder of the videos on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dmgal.episodes.catalogs.bad_videos import OnBadVideo
from dmgal.recipes.config import Recipe


@dataclass(frozen=True)
class DataOverrides:
    """Data settings that differ from training. None: as in training."""

    root: Path | None = None
    """Folder of the videos."""
    split_file: Path | None = None
    """CSV with the columns split, class_name and video, a list file, or a folder of lists."""
    report: Path | None = None
    """The report.csv of dmgal prepare."""
    store: Path | None = None
    """Folder of decoded frames, written by dmgal store."""
    on_bad_video: OnBadVideo | None = None
    """What to do if a video is missing or unreadable. error: stop. skip: continue without it and report it."""
    num_workers: int | None = None
    """Number of data loading processes."""

    def over(self, recipe: Recipe) -> Recipe:
        """Return the recipe with its data settings replaced by those that are not None."""
        overrides = {name: value for name, value in vars(self).items() if value is not None}
        return replace(recipe, data=replace(recipe.data, **overrides))
