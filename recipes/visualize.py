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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from dmgal.backbones import VideoState
from dmgal.episodes.evaluation import encode_videos
from dmgal.episodes.evaluation.states import precompute_states
from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.clips import list_clips
from dmgal.recipes.run.evaluation import is_run
from dmgal.recipes.run.gallery import GalleryModel, load_model, read_frames, test_frames
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.shown_layer import looking_layer
from dmgal.videos import VideoCatalog
from dmgal.videos.catalog.files import frame_files, subfolders
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.visualization import figures, films, plots
from dmgal.visualization.layers import find_layers, require_attention
from dmgal.visualization.maps import Direction, Recording, record
from dmgal.visualization.pictures import FILMS, check_ending, save_film, save_picture
from dmgal.visualization.projection import principal_plane, state_vectors, tsne_plane

Show = Literal["maps", "pair", "attention", "time", "task", "gallery"]
Given = Literal["clip", "clips", "classes", "gallery"]
POSSIBLE: dict[Given, tuple[Show, ...]] = {
    "clip": ("maps", "attention", "time", "pair"),
    "clips": ("pair", "task"),
    "classes": ("task", "gallery"),
    "gallery": ("gallery",),
}
"""What can be shown of one clip, two clips, a folder of classes and a clip, and a gallery and a clip. The first is the
default."""


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
    layer: str | None = None
    """Layer to show, see --list. None: the first Smga, S-MGA or TDSAM, for attention the one that looks at moving
    shapes most, a Cmga or C-MGA for tasks, or the patch embedding."""
    list: bool = False
    """Print the layers of the model and stop."""
    direction: Direction = "both"
    """Motion to the next frame (forward), to the previous one (backward), or both."""
    relative: bool = True
    """Subtract the features of still frames from learned motion. --no-relative shows the features as they are."""
    cells: Annotated[int, Range(1, 32)] = 3
    """Rows and columns of cells in a map."""
    frame: Annotated[int | None, Range(1, 1024)] = None
    """Frame of the (support) clip to enlarge with --show pair. None: the middle one."""
    other: Annotated[int | None, Range(1, 1024)] = None
    """Frame of the other clip. None: the same, or the next one of a single clip."""
    method: Literal["pca", "tsne"] = "pca"
    """Projection of a gallery. tsne needs scikit-learn."""
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
        if len(self.clips) == 1:
            return "clip"
        support = self.clips[0]
        if support.is_dir() and subfolders(support) and not frame_files(support):
            return "classes"
        return "gallery" if support.suffix == ".safetensors" else "clips"

    @property
    def shown(self) -> Show:
        """Content of the picture: the option, or the first that fits."""
        return self.show or POSSIBLE[self.given][0]


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
    if options.shown == "gallery":
        save_picture(_gallery(options), options.out)
        return
    task = _Task.of(options, _model(options))
    if options.out.suffix.lower() in FILMS:
        save_film(_film(options, task), options.out)
    else:
        save_picture(_picture(options, task), options.out)


def _check(options: Visualize) -> None:
    check_ending(options.out)
    if not 1 <= len(options.clips) <= 2:
        raise DmgalError(
            "There is nothing to show." if not options.clips else "There are too many paths.",
            received=" ".join(printable(str(path)) for path in options.paths) or "no path",
            expected="[RUN] [SUPPORT] CLIP",
            remedy="Name a clip, see dmgal visualize --help.",
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


@dataclass(frozen=True)
class _Task:
    """A recording of the clips, with the names and classes of the support."""

    recording: Recording
    labels: Sequence[int]
    class_names: Sequence[str]
    names: tuple[str, str]
    answer: str

    @classmethod
    def of(cls, options: Visualize, model: GalleryModel) -> _Task:
        """Read the clips and record them."""
        *support, query = options.clips
        paths, labels, class_names = list(support), [0] * len(support), [path.stem for path in support]
        if options.given == "classes":
            catalog = list_clips(support[0])
            paths, labels = [catalog.path(video) for video in range(len(catalog))], catalog.labels.tolist()
            class_names = list(catalog.class_names)
        videos = torch.stack([read_frames(model, path) for path in (*paths, query)])
        layer = options.layer or _default_layer(options, model)
        if options.shown == "attention":
            layers = find_layers(model.recognizer)
            if layer in layers:
                require_attention(layers[layer], layers)
        recording = record(model.recognizer, videos, layer, len(paths), options.relative)
        answer = _answer(model, videos, labels, class_names) if len(class_names) > 1 else ""
        return cls(recording, labels, class_names, (paths[0].name if paths else query.name, query.name), answer)


def _default_layer(options: Visualize, model: GalleryModel) -> str | None:
    """Return the layer that looks at motion most for a picture of attention, or None for the default of `record`."""
    return looking_layer(model).name if options.shown == "attention" else None


@torch.no_grad()
def _answer(model: GalleryModel, videos: Tensor, labels: Sequence[int], class_names: Sequence[str]) -> str:
    """Return the best class of the query, which is the last video, with its probability."""
    states = model.recognizer.encode(videos)
    support, query = states.split([len(labels), 1])
    logits = model.recognizer.compare(support, torch.tensor(labels), query).logits[0]
    probabilities = logits.softmax(dim=0)
    best = int(probabilities.argmax())
    return f"{class_names[best]} ({100 * probabilities[best].item():.0f} %)"


def _picture(options: Visualize, task: _Task) -> Figure:
    recording, (support, query) = task.recording, task.names
    if options.shown == "maps":
        return figures.motion_maps(recording, -1, options.cells, options.direction, query)
    if options.shown == "attention":
        return figures.attention_overlay(recording, -1, query)
    if options.shown == "time":
        return plots.motion_over_time(recording, -1, options.cells, query)
    if options.shown == "task":
        return figures.task_attention(recording, task.labels, task.class_names, -1, query, task.answer)
    middle = (recording.num_frames + 1) // 2
    first = options.frame or middle
    other = options.other or (first if recording.num_support else min(first + 1, recording.num_frames))
    last = recording.num_videos - 1
    names = (support, query) if recording.num_support else ("the clip", "the clip")
    return figures.pair_maps(recording, (0, first - 1), (last, other - 1), options.cells, options.direction, names)


def _film(options: Visualize, task: _Task) -> Iterator[Figure]:
    recording = task.recording
    if options.shown == "attention":
        return films.film_of_attention(recording)
    if options.shown == "time":
        return films.film_of_time(recording)
    if options.shown == "task":
        return films.film_of_task(recording, task.labels, task.class_names)
    if options.shown == "pair" and recording.num_support:
        return films.film_of_pairs(recording, 0, -1, options.cells, options.direction, task.names)
    return films.film_of_maps(recording, -1, options.cells, options.direction)


def _gallery(options: Visualize) -> Figure:
    """Return the plot of a gallery file, or of a folder of classes."""
    source, query = options.clips
    if options.given == "gallery":
        recognizer = ActionRecognizer.load(source, run=options.run)
        model, gallery = recognizer.model, recognizer.gallery
        states, labels, names = gallery.states.query, gallery.labels.tolist(), gallery.class_names
    else:
        model, catalog = _model(options), list_clips(source)
        states, labels, names = _states(model, catalog), catalog.labels.tolist(), catalog.class_names
    own = precompute_states(model.recognizer.eval(), read_frames(model, query)[None]).query
    plane = tsne_plane if options.method == "tsne" else principal_plane
    vectors = state_vectors(VideoState.cat([states, own]))
    points, point = plane(vectors[:-1], vectors[-1:])
    axis = "t-SNE dimension" if options.method == "tsne" else "principal component"
    return plots.gallery_plot(points, labels, names, point[0], axis, query.name)


def _states(model: GalleryModel, catalog: VideoCatalog) -> VideoState:
    clips = VideoDataset(ClipSource(catalog, model.recipe.data.decoder), test_frames(model))
    return encode_videos(model.recognizer, clips, progress=False).query


def main(argv: list[str] | None = None) -> int | None:
    """Draw the clips named on the command line."""
    options = parse_options(Visualize, argv, "visualize", __doc__)
    run(options)
    if not options.list:
        print(f"written: {printable(str(options.out))}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
