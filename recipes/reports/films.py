"""Film strips of videos and tasks with the answers of all methods, for pages. A strip is one image of a few frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dmgal.episodes.evaluation.accuracy import Answers
from dmgal.episodes.sampler import TaskSampler
from dmgal.files import printable
from dmgal.recipes.reports.runs import Row
from dmgal.videos import VideoCatalog
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import FrameSampler, TestTransform
from dmgal.videos.decoding.video import read_clip

FRAMES, PIXELS, QUALITY = 8, 72, 78
"""Frames in a strip, their height and width, and the quality of the JPEG. A strip has about 8 KB."""
MOST_PAIRS = 12


@dataclass(frozen=True)
class Film:
    """A video of a page.

    Attributes:
        title: name of its class.
        image: data URI of its strip, or empty if it cannot be read.
        text: description for a screen reader.
    """

    title: str
    image: str
    text: str


@dataclass(frozen=True)
class Answer:
    """Answer of a method to a query."""

    method: str
    title: str
    is_right: bool


@dataclass(frozen=True)
class ShownQuery:
    """A query with the answers of all methods."""

    film: Film
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class ShownTask:
    """A task: support films and queries, with its number and the reason for its choice."""

    episode: int
    reason: str
    support: tuple[Film, ...]
    queries: tuple[ShownQuery, ...]


@dataclass
class Films:
    """The film strips of a catalog, each read once."""

    catalog: VideoCatalog
    _strips: dict[int, str] = field(default_factory=dict)

    def title(self, label: int) -> str:
        """Return the name of a class as words."""
        return printable(self.catalog.class_names[label]).replace("_", " ")

    def film(self, video: int, role: str = "Film") -> Film:
        """Return the film of a video of the catalog."""
        title = self.title(int(self.catalog.labels[video]))
        if video not in self._strips:
            self._strips[video] = self._strip(video)
        return Film(title, self._strips[video], f"{role} of {title}: {FRAMES} frames in order of time")

    def first_of(self, label: int) -> Film:
        """Return the film of the first video of a class."""
        return self.film(int((self.catalog.labels == label).argmax()), "Example")

    def reversals(self) -> list[tuple[Film, Film]]:
        """Return examples of motions and of their time reversals."""
        pairs = self.catalog.reversal_pairs[:MOST_PAIRS]
        return [(self.first_of(one), self.first_of(other)) for one, other in pairs]

    def _strip(self, video: int) -> str:
        try:
            return strip(read_film(self.catalog.path(video)))
        except VideoError:
            return ""


def read_film(path: Path, frames: int = FRAMES, pixels: int = PIXELS) -> Tensor:
    """Return equally distant frames of a video, cropped to a square, uint8 ``(T, 3, pixels, pixels)``.

    Raises:
        VideoError: the video cannot be read.
    """
    return FrameSampler(frames, TestTransform(pixels)).clip(partial(read_clip, path))


def strip(frames: Tensor) -> str:
    """Return frames ``(T, 3, H, W)`` side by side as one JPEG in a data URI."""
    return data_uri(Image.fromarray(rearrange(frames, "t c h w -> h (t w) c").numpy()))


def data_uri(image: Image.Image) -> str:
    """Return an image as JPEG in a data URI."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def show_task(films: Films, rows: Sequence[Row], sampler: TaskSampler, episode: int, reason: str = "") -> ShownTask:
    """Return an episode with the answers of all rows."""
    task = sampler[episode]
    answers = [_of_episode(row, episode) for row in rows]
    queries = []
    for index, video in enumerate(task.query):
        found = []
        for row, predicted in zip(rows, answers, strict=True):
            label = int(predicted[index])
            found.append(Answer(row.name, films.title(label), label == int(films.catalog.labels[video])))
        queries.append(ShownQuery(films.film(video, "Query"), tuple(found)))
    support = tuple(films.film(video, "Support film") for video in task.support)
    return ShownTask(episode, reason, support, tuple(queries))


def hardest(rows: Sequence[Row], count: int) -> list[int]:
    """Return the episodes with the lowest accuracy, averaged over the rows. Ties go to the first."""
    mean = torch.stack([row.evaluations["accuracy"].accuracies for row in rows]).mean(dim=0)
    return mean.sort(stable=True).indices[:count].tolist()


def most_different(rows: Sequence[Row]) -> int:
    """Return the first episode in which the best row is ahead of the first row by most."""
    accuracies = [row.evaluations["accuracy"].accuracies for row in rows]
    best = max(accuracies, key=lambda values: values.mean().item())
    return int((best - accuracies[0]).argmax())


def _of_episode(row: Row, episode: int) -> list[int]:
    answers = row.evaluations["accuracy"].answers
    assert isinstance(answers, Answers)
    predicted: list[int] = answers.predicted[answers.episode == episode].tolist()
    return predicted
