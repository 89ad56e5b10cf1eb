"""Pictures and films of what a model sees in clips: similar motion, attention, motion over time, galleries.

    dmgal visualize clip.mp4                              maps of similar motion within a clip
    dmgal visualize clip.mp4 --show attention --out looks.mp4
    dmgal visualize support.mp4 query.mp4                 maps of every pair of frames of two clips
    dmgal visualize actions query.mp4                     where the query looks in each class of actions/CLASS/clip.mp4
    dmgal visualize gallery.safetensors query.mp4         the clips of a gallery in a plane, with the query
    dmgal visualize runs/mine clip.mp4 --layer smga.2     a run and a layer of your own choice
    dmgal visualize runs/mine --list                      all layers that can be shown

Without a run, the model is tiny-clip with the motion adapter that ships with dmgal. Any backbone with a grid of patches
and any layer can be shown. Layers without learned motion show the differences of their tokens between frames. The
ending of --out decides between a picture (png, svg) and a film (gif, mp4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.reports.shown_clips import POSSIBLE, Drawing, Given, Show, ShownClips, ShownGallery, kind_of
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.evaluation import is_run
from dmgal.recipes.run.gallery import GalleryModel, load_model
from dmgal.visualization.layers import find_layers
from dmgal.visualization.pictures import FILMS, check_ending, save_film, save_picture


@dataclass(frozen=True)
class Visualize:
    """Options of the command."""

    paths: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[RUN] [SUPPORT] CLIP")]] = ()
    """RUN: folder of a run. SUPPORT: a clip, a folder with one subfolder of clips per class, or a gallery file. CLIP:
    the clip to show, or the query."""
    show: Show | None = None
    """maps: self and cross maps of a clip. pair: maps of two clips, or of all frames of one. attention: where the model
    looks within a clip. time: motion over time. task: where the query looks in each class. gallery: clips in a plane.
    None: the first that fits."""
    out: Path = Path("visualization.png")
    """File to write: png or svg for a picture, gif or mp4 for a film."""
    list: bool = False
    """Print the layers of the model and stop."""
    drawing: tyro.conf.OmitArgPrefixes[Drawing] = field(default_factory=Drawing)
    backbone: str = "tiny-clip"
    """Backbone, if no run is given."""
    adapter: str | None = "tiny-clip-motion"
    """Motion adapter beside the backbone, if no run is given. None: the backbone alone."""

    @property
    def run(self) -> Path | None:
        """Folder of the run, or None for the default."""
        return self.paths[0] if self.paths and is_run(self.paths[0]) else None

    @property
    def clips(self) -> tuple[Path, ...]:
        """The paths after the run."""
        return self.paths if self.run is None else self.paths[1:]

    @property
    def given(self) -> Given:
        """Kind of the support, or "clip" if there is none."""
        return "clip" if len(self.clips) == 1 else kind_of(self.clips[0])

    @property
    def shown(self) -> Show:
        """Content of the picture: the option, or the first that fits."""
        return self.show or POSSIBLE[self.given][0]


def _check(options: Visualize) -> None:
    check_ending(options.out)
    if not 1 <= len(options.clips) <= 2:
        raise DmgalError(
            "There is nothing to show." if not options.clips else "There are too many paths.",
            received=" ".join(printable(str(path)) for path in options.paths) or "no path",
            expected="[RUN] [SUPPORT] CLIP",
            remedy="See dmgal visualize --help.",
        )
    if options.shown not in POSSIBLE[options.given]:
        names = {"clip": "one clip", "clips": "two clips", "classes": "classes and a clip", "gallery": "a gallery"}
        raise DmgalError(
            "This cannot be shown of what is given.",
            received=f"--show {options.shown} with {names[options.given]}",
            expected=", ".join(f"{names[given]}: {' or '.join(shows)}" for given, shows in POSSIBLE.items()),
            remedy="Change --show, or pass other paths.",
        )
    if options.shown == "gallery" and options.out.suffix.lower() in FILMS:
        raise DmgalError(
            "A gallery has no film.",
            received=printable(options.out.name),
            expected="a name that ends in .png or .svg",
            remedy="Change --out.",
        )


def _model(options: Visualize) -> GalleryModel:
    return load_model(options.run, options.backbone, options.adapter)


def run(options: Visualize) -> None:
    """Draw what the options ask for and write it.

    Raises:
        DmgalError: the model, a clip or the gallery cannot be used, or cannot be shown in this way.
    """
    if options.list:
        for layer in find_layers(_model(options).recognizer).values():
            kind = {"none": "", "within": ", attention within a frame", "across": ", attention to support videos"}
            print(f"{layer.name:<16}  {layer.title}{kind[layer.attention]}")
        return
    _check(options)
    *support, query = options.clips
    if options.given == "gallery":
        shown_gallery = ShownGallery.saved(support[0], options.run)
        save_picture(shown_gallery.picture(query, options.drawing), options.out)
        return
    model = _model(options)
    if options.shown == "gallery":
        save_picture(ShownGallery.of_clips(model, support[0]).picture(query, options.drawing), options.out)
        return
    clips = ShownClips.recorded(model, support, query, options.shown, options.drawing)
    if options.out.suffix.lower() in FILMS:
        save_film(clips.film(), options.out)
    else:
        save_picture(clips.picture(), options.out)


def main(argv: list[str] | None = None) -> int | None:
    """Draw the clips named on the command line."""
    options = parse_options(Visualize, argv, "visualize", __doc__)
    run(options)
    if not options.list:
        print(f"written: {printable(str(options.out))}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
