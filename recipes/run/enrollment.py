"""A change of a gallery file: clips, names and negatives to add, and classes to remove (``dmgal enroll``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.gallery_file import changing, load_gallery
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.clips import list_clips, list_negatives
from dmgal.recipes.run.folder import Run
from dmgal.videos.bad_videos import OnBadVideo


@dataclass(frozen=True)
class GalleryChange:
    """Additions to a gallery file, and removals from it.

    Attributes:
        clips: folder of clips, annotation file or clip.
        class_name: class of all clips. None: the classes of the folder or file.
        names: classes without clips.
        negatives: clips of other actions.
        removed: names of classes.
        adds: True if the gallery must exist already. A removal needs it, too.
        is_text_only: True if the class names alone are used.
        on_bad_video: what to do if a clip cannot be read.
    """

    clips: Path | None
    class_name: str | None
    names: tuple[str, ...]
    negatives: Path | None
    removed: tuple[str, ...]
    adds: bool
    is_text_only: bool
    on_bad_video: OnBadVideo

    @property
    def needs_gallery(self) -> bool:
        """True if the change needs an existing gallery."""
        return self.adds or bool(self.removed)

    def check(self, path: Path) -> None:
        """Raise a DmgalError if nothing would change, or if the file exists and should not."""
        if self.clips is not None and (self.names or self.is_text_only):
            raise DmgalError(
                "Class names alone need no clips.",
                received=f"{printable(str(self.clips))} with --name or --text.use only",
                expected="--name for each class, or clips",
                remedy="Remove the clips. To use clips and the names of their classes, pass --text.use fuse.",
            )
        adds_negatives = self.negatives is not None and self.adds
        if self.clips is None and not self.removed and not self.names and not adds_negatives:
            raise DmgalError(
                "There is nothing to do.",
                received="neither clips nor --name nor --remove, nor --negatives with --add",
                expected="a folder of clips or names of classes to enroll, or a class to remove",
                remedy="See dmgal enroll --help.",
            )
        if path.exists() and not self.needs_gallery:
            raise DmgalError(
                "This gallery already exists.",
                received=printable(str(path)),
                expected="a file that does not exist yet",
                remedy="Pass --add to add to it, or another --out.",
            )

    def check_files(self, path: Path, run: Path | None) -> None:
        """Raise a DmgalError for a run, a gallery or clips that are not there."""
        if run is not None:
            Run(run).recipe()
        if self.needs_gallery:
            load_gallery(path)
        if self.clips is not None:
            list_clips(self.clips, self.class_name)
        if self.negatives is not None:
            list_negatives(self.negatives)

    def apply(self, recognizer: ActionRecognizer) -> None:
        """Remove and enroll the classes."""
        on_bad_video, num_workers = self.on_bad_video, recognizer.model.recipe.data.num_workers
        if self.removed:
            recognizer.remove(*self.removed)
        if self.names:
            recognizer.enroll_names(*self.names)
        if self.clips is not None:
            clips = {self.class_name: self.clips} if self.class_name else self.clips
            recognizer.enroll(clips, on_bad_video=on_bad_video, num_workers=num_workers)
        if self.negatives is not None:
            recognizer.enroll_negatives(self.negatives, on_bad_video=on_bad_video, num_workers=num_workers)


def update_gallery(path: Path, run: Path | None, change: GalleryChange, settings: Mapping[str, Any]) -> Gallery:
    """Apply a change to a gallery file, and write it.

    Args:
        path: the file, which is created unless the change needs it.
        run: folder of a run, or None for the default.
        change: what to add and remove.
        settings: other arguments of `ActionRecognizer`.

    Raises:
        DmgalError: the clips, the gallery or the run cannot be used.
    """
    change.check(path)
    change.check_files(path, run)  # before a lock file is created
    with changing(path):
        change.check(path)  # again: another process may have written the gallery
        load = ActionRecognizer.load
        recognizer = load(path, run=run, **settings) if change.needs_gallery else ActionRecognizer(run, **settings)
        change.apply(recognizer)
        recognizer.save(path)
    return recognizer.gallery
