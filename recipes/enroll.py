"""Enrollment of actions, by a few clips each, in a gallery file for 'dmgal recognize'.

    dmgal enroll FOLDER --out gallery.safetensors                               FOLDER/ACTION/clip.mp4, 1-5 clips each
    dmgal enroll segments.csv --out gallery.safetensors                         segments: video,label,start,end
    dmgal enroll runs/mine FOLDER --out gallery.safetensors                     by a run of your own
    dmgal enroll runs/mine MORE --out gallery.safetensors --add                 more actions, or more clips of one
    dmgal enroll runs/mine clip.mp4 --class-name wave --out gallery.safetensors --add
    dmgal enroll runs/mine --out gallery.safetensors --remove wave
    dmgal enroll FOLDER --negatives OTHERS --out gallery.safetensors            stricter with unknown actions
    dmgal enroll FOLDER --text.use fuse --out gallery.safetensors               by clips and by class names
    dmgal enroll --name "brush hair" --name wave --out gallery.safetensors      by class names alone (zero-shot)

No training is needed: an action is represented by the states of its clips. Without a run, tiny-clip is used with the
motion adapter that ships with dmgal (method/motion). Adding and removing leaves the states of all other clips
bit-identical. Only the threshold below which a clip counts as unknown is computed again, from the gallery's own clips.
Each clip is held out in turn if its class has several. Otherwise augmented views replace it. Two or more clips per
action give a better threshold. Class names alone give none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.episodes.gallery.gallery import Gallery
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.reports.recognition import print_gallery
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.enrollment import GalleryChange, update_gallery
from dmgal.recipes.run.evaluation import is_run
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.text import TextOptions
from dmgal.videos.bad_videos import OnBadVideo


@dataclass(frozen=True)
class Enroll:
    """Options of the command."""

    paths: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RUN] CLIPS")]]
    """RUN: folder of a run, written by dmgal train. Default: method/motion, which needs no training. CLIPS: folder with
    one subfolder of clips per class, or an annotation file in the folder of its videos (.csv, .json of Label Studio,
    .xml of CVAT, .eaf of ELAN). With --class-name: a folder of clips, or one clip."""
    out: Path = Path("gallery.safetensors")
    """Gallery file to write."""
    class_name: str | None = None
    """Class of all clips."""
    name: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Class to recognize by its name alone, without clips. May be repeated."""
    text: TextOptions = field(default_factory=TextOptions)
    add: bool = False
    """Add the clips or names to the existing gallery."""
    negatives: Path | None = None
    """Folder of clips of other actions or of class folders with them, or an annotation file. Clips that resemble them
    are unknown. The more actions, the better. Replaces earlier negatives of the gallery."""
    remove: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Class to remove from the gallery. May be repeated."""
    shortlist: int | None = None
    """Compare a clip with this many classes only, preselected without the attention between videos. For runs with a
    Cmga. 0: all classes. None: as the gallery has it, or all classes for a new gallery."""
    views: Annotated[int, Range(1, 1000)] = 2
    """Augmented views per clip, for classes with a single clip."""
    on_bad_video: Annotated[OnBadVideo, tyro.conf.arg(aliases=["--data.on-bad-video"])] = "error"
    """What to do if a clip cannot be read. error: stop. skip: continue without it and report it."""
    quiet: bool = False
    """Hide progress bars."""

    @property
    def run(self) -> Path | None:
        """Folder of the run, or None for the default."""
        only_removes = bool(self.remove) and not self.add
        is_first = len(self.paths) > 1 or (self.paths and (only_removes or is_run(self.paths[0])))
        return self.paths[0] if is_first else None

    def make_change(self) -> GalleryChange:
        """Return the change of the gallery file that the options ask for.

        Raises:
            DmgalError: there are too many paths.
        """
        clips = self.paths if self.run is None else self.paths[1:]
        if len(self.paths) > 2:
            raise DmgalError(
                "Only one folder of clips can be enrolled at a time.",
                received=" ".join(printable(str(path)) for path in self.paths),
                expected="[RUN] CLIPS",
                remedy="Enroll the first folder, and the others with --add.",
            )
        return GalleryChange(
            clips=clips[0] if clips else None,
            class_name=self.class_name and printable(self.class_name.strip()),
            names=tuple(printable(name.strip()) for name in self.name),
            negatives=self.negatives,
            removed=tuple(map(printable, self.remove)),
            adds=self.add,
            is_text_only=self.text.use == "only",
            on_bad_video=self.on_bad_video,
        )


def run(options: Enroll) -> Gallery:
    """Enroll, add and remove clips by the options, and write the gallery.

    Raises:
        DmgalError: the clips, the gallery or the run cannot be used.
    """
    settings: dict[str, object] = {"views": options.views, "verbose": not options.quiet, "text": options.text}
    if options.shortlist is not None:
        settings["shortlist"] = options.shortlist
    return update_gallery(options.out, options.run, options.make_change(), settings)


def main(argv: list[str] | None = None) -> int | None:
    """Enroll the clips named on the command line."""
    options = parse_options(Enroll, argv, "enroll", __doc__)
    print_gallery(run(options), options.out)
    places = [path for path in (options.run, options.out) if path is not None]
    print(f"next: dmgal recognize {' '.join(printable(str(path)) for path in places)} CLIP")
    return 0


if __name__ == "__main__":
    run_recipe(main)
