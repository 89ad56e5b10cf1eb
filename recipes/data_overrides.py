"""What a command may say anew of a finished run's data: where it lies on this machine, and what bad videos come to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dmgal.episodes.catalogs.bad_videos import OnBadVideo
from dmgal.recipes.config import Recipe


@dataclass(frozen=True)
class DataOverrides:
    """The run's data, where it is not to be as in training; None: as there."""

    root: Path | None = None
    """Folder of the videos."""
    split_file: Path | None = None
    """CSV with the columns split, class_name, video, a list, or a folder of lists."""
    report: Path | None = None
    """The report.csv of dmgal prepare."""
    store: Path | None = None
    """Folder of frames that were decoded once, made by dmgal store."""
    on_bad_video: OnBadVideo | None = None
    """A video that is missing or cannot be read: stop, or go on without it and say so."""
    num_workers: int | None = None
    """Processes that load data."""

    def over(self, recipe: Recipe) -> Recipe:
        """The recipe with these values in place of its own."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(recipe, data=replace(recipe.data, **given))
