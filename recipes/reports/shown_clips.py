"""Clips and galleries as a model sees them, drawn as pictures and films (``dmgal visualize``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dmgal.backbones import VideoState
from dmgal.episodes.evaluation import encode_videos
from dmgal.episodes.evaluation.states import precompute_states
from dmgal.recipes.run.action_recognizer import ActionRecognizer
from dmgal.recipes.run.clips import list_clips
from dmgal.recipes.run.gallery import GalleryModel, read_frames, test_frames
from dmgal.recipes.run.ranges import Range
from dmgal.recipes.run.shown_layer import looking_layer
from dmgal.videos.catalog.files import frame_files, subfolders
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.visualization import figures, films, plots
from dmgal.visualization.layers import find_layers, require_attention
from dmgal.visualization.maps import Direction, Recording, record
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


def kind_of(support: Path) -> Given:
    """Return what the path beside a query is."""
    if support.is_dir() and subfolders(support) and not frame_files(support):
        return "classes"
    return "gallery" if support.suffix == ".safetensors" else "clips"


@dataclass(frozen=True)
class Drawing:
    """Content and form of a picture."""

    layer: str | None = None
    """Layer to show, see --list. None: the first Smga, S-MGA or TDSAM, for attention the one that looks at moving
    shapes most, a Cmga or C-MGA for tasks, or the patch embedding."""
    direction: Direction = "both"
    """Motion to the next frame (forward), to the previous one (backward), or both."""
    relative: bool = True
    """Subtract the features of still frames from learned motion. --no-relative shows the features as they are."""
    cells: Annotated[int, Range(1, 32)] = 3
    """Number of rows and of columns of cells in a map."""
    frame: Annotated[int | None, Range(1, 1024)] = None
    """Frame of the clip, or of the support clip, to enlarge with --show pair. 1: the first that the model sees. None:
    the middle one."""
    other: Annotated[int | None, Range(1, 1024)] = None
    """Frame of the query to enlarge, likewise. None: the same as --frame, or the next one of a single clip."""
    method: Literal["pca", "tsne"] = "pca"
    """Projection of a gallery to a plane. tsne needs scikit-learn."""


@dataclass(frozen=True)
class ShownClips:
    """A recording of clips, of which the last is the query, with the names and classes of the support.

    Attributes:
        recording: features and attention of the clips in one layer.
        labels: class index of each support clip.
        class_names: names of the classes.
        names: names of the first support clip and of the query.
        answer: best class of the query with its probability, if there are several.
        show: what to draw of them.
        drawing: how to draw it.
    """

    recording: Recording
    labels: Sequence[int]
    class_names: Sequence[str]
    names: tuple[str, str]
    answer: str
    show: Show
    drawing: Drawing

    @classmethod
    def recorded(
        cls, model: GalleryModel, support: Sequence[Path], query: Path, show: Show, drawing: Drawing
    ) -> ShownClips:
        """Read the clips and record them. ``support`` is a clip, a folder of classes, or empty.

        Raises:
            DmgalError: a clip cannot be read, or the model has no such layer.
        """
        paths, labels, class_names = list(support), [0] * len(support), [path.stem for path in support]
        if support and kind_of(support[0]) == "classes":
            catalog = list_clips(support[0])
            paths, labels = [catalog.path(video) for video in range(len(catalog))], catalog.labels.tolist()
            class_names = list(catalog.class_names)
        videos = torch.stack([read_frames(model, path) for path in (*paths, query)])
        layer = drawing.layer
        if show == "attention":
            layer, layers = layer or looking_layer(model).name, find_layers(model.recognizer)
            if layer in layers:
                require_attention(layers[layer], layers)
        recording = record(model.recognizer, videos, layer, len(paths), drawing.relative)
        answer = _answer(model, videos, labels, class_names) if len(class_names) > 1 else ""
        names = paths[0].name if paths else query.name, query.name
        return cls(recording, labels, class_names, names, answer, show, drawing)

    def picture(self) -> Figure:
        """Draw the clips as one picture."""
        recording, drawing, (support, query) = self.recording, self.drawing, self.names
        if self.show == "maps":
            return figures.motion_maps(recording, -1, drawing.cells, drawing.direction, query)
        if self.show == "attention":
            return figures.attention_overlay(recording, -1, query)
        if self.show == "time":
            return plots.motion_over_time(recording, -1, drawing.cells, query)
        if self.show == "task":
            return figures.task_attention(recording, self.labels, self.class_names, -1, query, self.answer)
        middle, is_single = (recording.num_frames + 1) // 2, not recording.num_support
        first = drawing.frame or middle
        other = drawing.other or (min(first + 1, recording.num_frames) if is_single else first)
        frames = (0, first - 1), (recording.num_videos - 1, other - 1)
        names = ("the clip", "the clip") if is_single else (support, query)
        return figures.pair_maps(recording, *frames, drawing.cells, drawing.direction, names)

    def film(self) -> Iterator[Figure]:
        """Draw the clips as the pictures of a film."""
        recording, drawing = self.recording, self.drawing
        if self.show == "attention":
            return films.film_of_attention(recording)
        if self.show == "time":
            return films.film_of_time(recording)
        if self.show == "task":
            return films.film_of_task(recording, self.labels, self.class_names)
        if self.show == "pair" and recording.num_support:
            return films.film_of_pairs(recording, 0, -1, drawing.cells, drawing.direction, self.names)
        return films.film_of_maps(recording, -1, drawing.cells, drawing.direction)


@torch.no_grad()
def _answer(model: GalleryModel, videos: Tensor, labels: Sequence[int], class_names: Sequence[str]) -> str:
    """Return the best class of the query, which is the last video, with its probability."""
    states = model.recognizer.encode(videos)
    support, query = states.split([len(labels), 1])
    logits = model.recognizer.compare(support, torch.tensor(labels), query).logits[0]
    probabilities = logits.softmax(dim=0)
    best = int(probabilities.argmax())
    return f"{class_names[best]} ({100 * probabilities[best].item():.0f} %)"


@dataclass(frozen=True)
class ShownGallery:
    """States of the clips of a gallery, ``n`` videos, with their class indices and the names of the classes."""

    model: GalleryModel
    states: VideoState
    labels: Sequence[int]
    class_names: Sequence[str]

    @classmethod
    def saved(cls, path: Path, run: Path | None) -> ShownGallery:
        """Load a gallery file that was made with a run, or without one."""
        recognizer = ActionRecognizer.load(path, run=run)
        gallery = recognizer.gallery
        return cls(recognizer.model, gallery.states.query, gallery.labels.tolist(), gallery.class_names)

    @classmethod
    def of_clips(cls, model: GalleryModel, folder: Path) -> ShownGallery:
        """Encode the clips of a folder of classes."""
        catalog = list_clips(folder)
        clips = VideoDataset(ClipSource(catalog, model.recipe.data.decoder), test_frames(model))
        states = encode_videos(model.recognizer, clips, progress=False).query
        return cls(model, states, catalog.labels.tolist(), catalog.class_names)

    def picture(self, query: Path, drawing: Drawing) -> Figure:
        """Draw the clips and a query in a plane."""
        own = precompute_states(self.model.recognizer.eval(), read_frames(self.model, query)[None]).query
        plane = tsne_plane if drawing.method == "tsne" else principal_plane
        vectors = state_vectors(VideoState.cat([self.states, own]))
        points, point = plane(vectors[:-1], vectors[-1:])
        axis = "t-SNE dimension" if drawing.method == "tsne" else "principal component"
        return plots.gallery_plot(points, self.labels, self.class_names, point[0], axis, query.name)
