"""Enrolls actions by a few clips each into a gallery, one file that 'dmgal recognize' compares other clips with.

    dmgal enroll runs/mine FOLDER --out gallery.safetensors                     FOLDER/ACTION/clip.mp4, 1-5 clips each
    dmgal enroll runs/mine MORE --out gallery.safetensors --add                 further actions, or further clips of one
    dmgal enroll runs/mine clip.mp4 --class-name wave --out gallery.safetensors --add
    dmgal enroll runs/mine --out gallery.safetensors --remove wave

Nothing is trained: an action is known by the states that the run's model gives to its clips. Adding and removing
leaves the states of all other clips as they are, bit for bit; only the threshold below which a clip counts as unknown
is found anew. It comes from the gallery's own clips: each is held out in turn where its class has several, else
augmented views of it stand in; two clips for each action make it a better one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.episodes.catalogs.bad_videos import OnBadVideo
from dmgal.episodes.galleries.gallery_file import changing, load_gallery, save_gallery
from dmgal.episodes.galleries.rejection import Rejection
from dmgal.episodes.gallery import Gallery, refuse_other_model
from dmgal.episodes.listing import printable
from dmgal.errors import DmgalError
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.evaluate import load_run
from dmgal.recipes.galleries.gallery_making import list_clips, make_gallery, with_rejection
from dmgal.recipes.galleries.made_with import made_with
from dmgal.recipes.runs import Run

CLASSES_SHOWN = 30


@dataclass(frozen=True)
class Enroll:
    """Options of the command."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Folder of a run, as dmgal train writes it."""
    clips: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="CLIPS")]] = None
    """A folder of class folders with clips; with --class-name a folder of clips, or one clip."""
    out: Path = Path("gallery.safetensors")
    """The gallery."""
    class_name: str | None = None
    """The clips are all of this class."""
    add: bool = False
    """Add to the gallery that is there."""
    remove: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Take this class out of the gallery; may be given several times."""
    shortlist: int | None = None
    """Where the run has a Cmga: compare a clip with this many classes only, those that look best without its attention
    between videos; None: as before, a new gallery with all of them. 0: with all of them."""
    views: int = 2
    """Augmented views that stand in for the missing second clip of a class."""
    on_bad_video: Annotated[OnBadVideo, tyro.conf.arg(aliases=["--data.on-bad-video"])] = "error"
    """A clip that cannot be read: stop, or go on without it and say so."""
    quiet: bool = False
    """No progress bars."""


def rejection_text(rejection: Rejection) -> str:
    """What the threshold is and what it rests on, in one line."""
    text = f"best logit below {rejection.threshold:.3g}, from {rejection.known} {rejection.source}"
    text += f", of which {100 * rejection.known_kept:.0f} % pass"
    if rejection.unknown_accepted is None:
        return text + "; a single class leaves no unknown clips to look at"
    return text + f"; of {rejection.unknown} clips whose class is left out {100 * rejection.unknown_accepted:.0f} % do"


def run(options: Enroll) -> Gallery:
    """Enroll, add and remove as the options say; the gallery is written.

    Raises:
        DmgalError: clips, a gallery or a run that cannot be used.
    """
    _check(options)
    recipe, recognizer = load_run(Run(options.run))
    catalog = None if options.clips is None else list_clips(options.clips, options.class_name)
    _existing(options)  # where it should be there and is not, no lock is made beside it
    with changing(options.out, lambda: print(f"waiting for who changes {options.out}", file=sys.stderr)):
        _check(options)  # again: the gallery may have been made meanwhile
        gallery = _existing(options)
        shortlist = options.shortlist
        if gallery is not None:
            refuse_other_model(gallery.made_with, made_with(recipe, recognizer), "The run")
            if shortlist is None and gallery.rejection is not None:
                shortlist = gallery.rejection.shortlist
            gallery = gallery.removed([printable(name) for name in options.remove]) if options.remove else gallery
        if catalog is not None:
            arguments = recipe, recognizer, options.views, options.on_bad_video, not options.quiet
            new = make_gallery(catalog, *arguments)
            gallery = new if gallery is None else gallery.added(new)
        assert gallery is not None
        gallery = with_rejection(gallery, recognizer, shortlist or None, progress=not options.quiet)
        save_gallery(gallery, options.out)
    return gallery


def _existing(options: Enroll) -> Gallery | None:
    return load_gallery(options.out) if options.add or options.remove else None


def _check(options: Enroll) -> None:
    if options.clips is None and not options.remove:
        raise DmgalError(
            "There is nothing to do.",
            received="neither clips nor --remove",
            expected="a folder of clips to enroll, or a class to take out",
            remedy="see dmgal enroll --help",
        )
    if options.out.exists() and not (options.add or options.remove):
        raise DmgalError(
            "This gallery is already there.",
            received=printable(str(options.out)),
            expected="a file that does not exist yet",
            remedy="pass --add to add to it, or another --out",
        )


def tell(gallery: Gallery, path: Path) -> None:
    """Prints what a gallery holds."""
    size = path.stat().st_size / 1024
    print(
        f"{printable(str(path))}: {_counted(gallery.n_way, 'class')}, {_counted(len(gallery), 'clip')}, {size:,.0f} KB"
    )
    rows: Sequence[tuple[str, int]] = list(zip(gallery.class_names, gallery.shots, strict=True))
    width = max(len(printable(name)) for name, _ in rows[:CLASSES_SHOWN])
    for name, shots in rows[:CLASSES_SHOWN]:
        print(f"  {printable(name):<{width}}  {_counted(shots, 'clip')}")
    if len(rows) > CLASSES_SHOWN:
        print(f"  and {len(rows) - CLASSES_SHOWN} more")
    assert gallery.rejection is not None
    print(f"unknown: {rejection_text(gallery.rejection)}")


def _counted(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def main(argv: list[str] | None = None) -> int | None:
    """Enroll the clips of a command line."""
    options = tyro.cli(
        Enroll, prog="dmgal enroll", args=sys.argv[1:] if argv is None else argv, description=as_description(__doc__)
    )
    tell(run(options), options.out)
    print(f"next: dmgal recognize {options.run} {printable(str(options.out))} CLIP")
    return 0


if __name__ == "__main__":
    run_recipe(main)
