"""Enrollment of actions, by a few clips each, in a gallery file for 'dmgal recognize'.

    dmgal enroll FOLDER --out gallery.safetensors                               FOLDER/ACTION/clip.mp4, 1-5 clips each
    dmgal enroll runs/mine FOLDER --out gallery.safetensors                     by a run of your own
    dmgal enroll runs/mine MORE --out gallery.safetensors --add                 more actions, or more clips of one
    dmgal enroll runs/mine clip.mp4 --class-name wave --out gallery.safetensors --add
    dmgal enroll runs/mine --out gallery.safetensors --remove wave
    dmgal enroll FOLDER --text.use fuse --out gallery.safetensors               by clips and by class names
    dmgal enroll --name "brush hair" --name wave --out gallery.safetensors      by class names alone (zero-shot)

No training is needed: an action is represented by the states of its clips. Without a run, tiny-clip is used with the
motion adapter that ships with dmgal (method/motion). Adding and removing leaves the states of all other clips
bit-identical. Only the threshold below which a clip counts as unknown is computed again, from the gallery's own clips.
Each clip is held out in turn if its class has several. Otherwise augmented views replace it. Two or more clips per
action give a better threshold. Class names alone give none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.episodes.gallery.gallery import Gallery, changing, load_gallery, save_gallery
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.reports.recognition import print_gallery
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.evaluation import is_run, load_run_or_default
from dmgal.recipes.run.gallery import list_clips, made_with, make_gallery, with_rejection
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.text import (
    TextOptions,
    gallery_of_names,
    learns_text,
    texts_to_add,
    with_gallery_texts,
    with_text,
)
from dmgal.videos.bad_videos import OnBadVideo


@dataclass(frozen=True)
class Enroll:
    """Options of the command."""

    paths: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RUN] CLIPS")]]
    """RUN: folder of a run, written by dmgal train. Default: method/motion, which needs no training. CLIPS: folder with
    one subfolder of clips per class. With --class-name: a folder of clips, or one clip."""
    out: Path = Path("gallery.safetensors")
    """Gallery file to write."""
    class_name: str | None = None
    """Class of all clips."""
    name: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Class to recognize by its name alone, without clips. May be repeated."""
    text: TextOptions = field(default_factory=TextOptions)
    add: bool = False
    """Add the clips or names to the existing gallery."""
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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of classes without clips."""
        return tuple(printable(name.strip()) for name in self.name)

    @property
    def clips(self) -> Path | None:
        """Folder of the clips, or the clip, if there are any."""
        rest = self.paths if self.run is None else self.paths[1:]
        return rest[0] if rest else None


def run(options: Enroll) -> Gallery:
    """Enroll, add and remove clips by the options, and write the gallery.

    Raises:
        DmgalError: the clips, the gallery or the run cannot be used.
    """
    _check(options)
    recipe, recognizer = load_run_or_default(options.run)
    catalog = None if options.clips is None else list_clips(options.clips, options.class_name)
    _existing(options)  # raises before a lock file is created beside a missing gallery
    with changing(options.out):
        _check(options)  # again: another process may have written the gallery
        gallery = _existing(options)
        shortlist = options.shortlist
        if gallery is not None:
            gallery.check_model(made_with(recipe, recognizer))
            if shortlist is None and gallery.rejection is not None:
                shortlist = gallery.rejection.shortlist
            gallery = gallery.removed([printable(name) for name in options.remove]) if options.remove else gallery
        new_names = options.names if catalog is None else catalog.class_names
        is_learned = learns_text(recognizer)
        texts = texts_to_add(options.text, recipe, gallery, new_names, catalog is None, is_learned)
        plain, made = recognizer, made_with(recipe, recognizer)
        if catalog is not None:
            recognizer = plain if texts is None else with_text(plain, recipe, texts, is_only=False)
            arguments = recipe, recognizer, options.views, options.on_bad_video, not options.quiet
            new = replace(make_gallery(catalog, *arguments), made_with=made, texts=texts)
            gallery = new if gallery is None else gallery.added(new)
        elif texts is not None:
            new = gallery_of_names(texts, made)
            gallery = new if gallery is None else gallery.added(new)
        assert gallery is not None
        recognizer = with_gallery_texts(plain, recipe, gallery)
        gallery = with_rejection(gallery, recognizer, shortlist or None, progress=not options.quiet)
        save_gallery(gallery, options.out)
    return gallery


def _existing(options: Enroll) -> Gallery | None:
    return load_gallery(options.out) if options.add or options.remove else None


def _check(options: Enroll) -> None:
    if len(options.paths) > 2:
        raise DmgalError(
            "Only one folder of clips can be enrolled at a time.",
            received=" ".join(printable(str(path)) for path in options.paths),
            expected="[RUN] CLIPS",
            remedy="Enroll the first folder, and the others with --add.",
        )
    if options.clips is not None and (options.name or options.text.use == "only"):
        raise DmgalError(
            "Class names alone need no clips.",
            received=f"{printable(str(options.clips))} with --name or --text.use only",
            expected="--name for each class, or clips",
            remedy="Remove the clips. To use clips and the names of their classes, pass --text.use fuse.",
        )
    if options.clips is None and not options.remove and not options.name:
        raise DmgalError(
            "There is nothing to do.",
            received="neither clips nor --name nor --remove",
            expected="a folder of clips or names of classes to enroll, or a class to remove",
            remedy="See dmgal enroll --help.",
        )
    if options.out.exists() and not (options.add or options.remove):
        raise DmgalError(
            "This gallery already exists.",
            received=printable(str(options.out)),
            expected="a file that does not exist yet",
            remedy="Pass --add to add to it, or another --out.",
        )


def main(argv: list[str] | None = None) -> int | None:
    """Enroll the clips named on the command line."""
    options = parse_options(Enroll, argv, "enroll", __doc__)
    print_gallery(run(options), options.out)
    places = [path for path in (options.run, options.out) if path is not None]
    print(f"next: dmgal recognize {' '.join(printable(str(path)) for path in places)} CLIP")
    return 0


if __name__ == "__main__":
    run_recipe(main)
