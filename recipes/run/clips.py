"""Clips to enroll, by class: from folders, and from what a program passes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmgal.errors import DmgalError
from dmgal.files import listed, printable
from dmgal.videos import VideoCatalog
from dmgal.videos.annotations.segment import file_and_span
from dmgal.videos.catalog.files import subfolders, videos_in
from dmgal.videos.catalog.lists import is_annotation_file
from dmgal.videos.decoding.in_memory import VideoInMemory, as_video, is_clip

Label = str | int
"""A class, as a program names it."""


def list_clips(folder: Path, class_name: str | None = None) -> VideoCatalog:
    """Return the clips to enroll, by class.

    Args:
        folder: a folder of class folders, an annotation file beside its videos, or the clips of ``class_name``.
        class_name: class of all clips. A folder of clips or a single clip has no class of its own.

    Raises:
        DmgalError: there are no clips or no class folders, or a class has no clip.
    """
    if class_name is None:
        if is_annotation_file(folder):
            return VideoCatalog.from_split(folder, folder.parent)
        if folder.is_dir() and not subfolders(folder) and videos_in(folder):
            raise DmgalError(
                "The clips have no class.",
                received=f"{printable(str(folder))}, a folder of clips",
                expected="a folder of class folders with clips, or the class of all clips",
                remedy="Pass the parent folder, or --class-name NAME (in Python {NAME: FOLDER}).",
            )
        return VideoCatalog.from_folders(folder)
    is_there = os.path.lexists(file_and_span(folder)[0])
    names = videos_in(folder) if folder.is_dir() else [folder.name] if is_there else []
    is_frames = folder.is_dir() and not names and folder.name in videos_in(folder.parent)
    if is_frames:
        names = [folder.name]
    if not class_name.strip() or not names:
        raise DmgalError(
            "There is nothing to enroll.",
            received=f"class {class_name!r} and {printable(str(folder))}, with {len(names)} clips",
            expected="the name of a class, and a clip or a folder of clips",
            remedy="Correct the name or the path.",
        )
    root = folder if folder.is_dir() and not is_frames else folder.parent
    return VideoCatalog(root, names, np.zeros(len(names), dtype=np.int64), (printable(class_name.strip()),))


def list_negatives(folder: Path) -> VideoCatalog:
    """Return clips of other actions: of class folders, of one folder, each as a class of its own, or annotated ones.

    Raises:
        DmgalError: there are no clips, or a class has no clip.
    """
    if is_annotation_file(folder):
        return VideoCatalog.from_split(folder, folder.parent)
    names = videos_in(folder) if folder.is_dir() else []
    if names and {*subfolders(folder)} <= {*names}:  # also folders of frames
        return VideoCatalog(folder, names, np.arange(len(names)), tuple(f"negative {name}" for name in names))
    if not folder.is_dir() or not subfolders(folder):
        raise DmgalError(
            "There are no negatives.",
            received=f"{printable(str(folder))}, {'an empty folder' if folder.is_dir() else 'no folder'}",
            expected="a folder of clips of other actions, or of class folders with such clips",
            remedy="Correct the path, or remove --negatives.",
        )
    return VideoCatalog.from_folders(folder)


def collect_clips(clips: Mapping[str, object]) -> tuple[VideoCatalog, dict[int, VideoInMemory]]:
    """Return the clips of a mapping as a catalog, and those of its videos that are in memory.

    Args:
        clips: by the name of the class: a clip, several clips (see `as_video`), or the path of a folder of clips.

    Raises:
        DmgalError: something is not a clip, or a class has no clip.
    """
    names: list[str] = []
    labels: list[int] = []
    in_memory: dict[int, VideoInMemory] = {}
    for label, (class_name, value) in enumerate(clips.items()):
        for video in _videos(class_name, value):
            if isinstance(video, Path):
                names.append(str(video))
            else:
                in_memory[len(names)] = video
                names.append(f"clip {len(names) + 1}")
            labels.append(label)
    empty = [name for label, name in enumerate(clips) if label not in labels]
    if empty or not clips:
        raise DmgalError(
            "There is nothing to enroll.",
            received=f"no clips of {listed(empty)}" if empty else "no classes",
            expected="at least one clip of each class",
            remedy="Add clips, or omit these classes.",
        )
    return VideoCatalog(Path(), names, np.array(labels, dtype=np.int64), tuple(clips)), in_memory


def _videos(class_name: str, value: object) -> list[Path | VideoInMemory]:
    if isinstance(value, str | os.PathLike):
        catalog = list_clips(Path(value), class_name)
        return [catalog.path(video) for video in range(len(catalog))]
    if is_clip(value) or not isinstance(value, Iterable):
        return [as_video(value)]
    return [as_video(clip) for clip in value]


def names_of(labels: Iterable[Any]) -> dict[str, Label]:
    """Return labels by the names that a gallery stores, in order of first appearance.

    Raises:
        DmgalError: the labels are neither all text nor all integers, or one is blank.
    """
    plain = [label.item() if isinstance(label, np.generic) else label for label in labels]
    is_text = all(isinstance(label, str) and label.strip() for label in plain)
    if not is_text and not all(isinstance(label, int) for label in plain):
        raise DmgalError(
            "These are no names of classes.",
            received=listed([repr(label) for label in dict.fromkeys(map(_hashable, plain))]),
            expected="either text that is not blank, or integers",
            remedy="Name the classes in one way.",
        )
    return {str(label): label for label in plain}


def _hashable(label: object) -> object:
    return label if isinstance(label, str | int | float | None) else repr(label)


def several_clips(videos: Iterable[object]) -> Iterable[object]:
    """Return the clips of a collection. Raise a DmgalError if it is a single clip."""
    if is_clip(videos) or not isinstance(videos, Iterable):
        raise DmgalError(
            "These are not several clips.",
            received=f"a {type(videos).__name__}",
            expected="a list of clips",
            remedy="Pass [clip], or call recognize(clip) for one clip.",
        )
    return videos


def check_counts(num_videos: int, num_labels: int | None = None) -> None:
    """Raise a DmgalError if there is no video, or another number of labels."""
    if not num_videos or num_labels not in (None, num_videos):
        raise DmgalError(
            "These clips cannot be used.",
            received=f"{num_videos} clips" if num_labels is None else f"{num_videos} clips and {num_labels} labels",
            expected="at least one clip, and one label for each if there are labels",
            remedy="Pass a list of clips, and a list of their labels to fit and to score.",
        )
