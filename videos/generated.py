"""Generated data sets on disk: settings that determine every clip, resumable writing, protection of other files.

The files are ``root/<split>/<class>/<class>_<clip>.mp4`` (H.264), ``root/split.csv`` (with each class's reversal), and
a manifest such as ``moving_shapes.json``, which is written last and marks a complete dataset. Until then
``moving_shapes.unfinished.json`` records the settings, so that an interrupted run can be resumed with the same
settings only. The clips depend only on the settings. No download is needed.
"""

from __future__ import annotations

import json
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import av
from einops import rearrange
from torch import Tensor

from ..errors import DmgalError
from ..files import atomic_write, exclusively, listed, read_json, write_text
from ..parallel import completed
from ..progress import progress_bar
from .catalog.lists import write_rows
from .decoding.base import VideoError
from .decoding.video import read_clip

SPLIT_FILE = "split.csv"
CLIPS_PER_TASK = 10
CLIPS, FRAMES, PIXELS = (1, 10**5), (8, 64), (16, 512)
"""Least and most clips of a class, frames of a clip, and height and width of a frame."""

Clip = tuple[int, int, str]
"""Index of the class, number of the clip in it, and path relative to the root."""


class ClipClass(Protocol):
    """A class of a generated data set, with the name of the class that is its time reversal."""

    @property
    def name(self) -> str:
        """Name of the class."""

    @property
    def reversal(self) -> str | None:
        """Name of the class that shows the same motion backward, or None."""


@dataclass(frozen=True)
class ClipSettings(ABC):
    """Settings that determine all clips of a generated data set.

    Args:
        seed: of the split and all clips, 0 or more.
        clips_per_class: at least 1.
        frames: number of frames per clip, 8 to 64, at 10 per second. With fewer frames, fast motions would alias.
        pixels: height and width, even, 16 to 512.

    Raises:
        DmgalError: a value is out of range.
    """

    seed: int = 0
    clips_per_class: int = 30
    frames: int = 16
    pixels: int = 64

    DATA_SET: ClassVar[str]
    """Name of the data set. With underscores, it is part of its file names."""
    VERSION: ClassVar[int]
    """Number that increases with every change of the drawing or the encoding."""
    MEGABYTES: ClassVar[int]
    """Approximate size of the default data set."""

    def __post_init__(self) -> None:
        self._check("seed", 0, 2**63 - 1)
        self._check("clips_per_class", *CLIPS)
        self._check("frames", *FRAMES)
        self._check("pixels", *PIXELS)
        if self.pixels % 2:
            raise self.bad_value("pixels", self.pixels, "an even number: H.264 halves the resolution of color")

    @abstractmethod
    def classes(self) -> Sequence[ClipClass]:
        """Return all classes in a fixed order."""

    @abstractmethod
    def split(self) -> dict[str, tuple[int, ...]]:
        """Return the class indices of ``train`` (base), ``val`` and ``test`` (novel)."""

    @abstractmethod
    def clip(self, motion: int, clip: int) -> Tensor:
        """Return the frames of a clip, uint8 ``(T, 3, pixels, pixels)``. ``motion`` is the index of its class."""

    @property
    def slug(self) -> str:
        """The name of the data set with underscores."""
        return self.DATA_SET.replace(" ", "_")

    @property
    def manifest(self) -> str:
        """Name of the file that marks a complete dataset."""
        return f"{self.slug}.json"

    @property
    def promise(self) -> str:
        """Name of the file that records the settings of an incomplete dataset."""
        return f"{self.slug}.unfinished.json"

    @property
    def lock(self) -> str:
        """Name of the lock file."""
        return f".{self.slug}.lock"

    def description(self) -> dict[str, object]:
        """Return what identifies the dataset."""
        return {"data_set": self.DATA_SET, "version": self.VERSION, **asdict(self)}

    def bad_value(self, name: str, value: object, expected: str) -> DmgalError:
        """Return the error about a value."""
        return DmgalError(
            f"Cannot generate {self.DATA_SET} with these values.",
            received=f"{name}={value!r}",
            expected=f"{name}: {expected}",
            remedy=f"Change {name}.",
        )

    def _check(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.bad_value(name, value, f"an integer from {low} to {high}")


def generate(settings: ClipSettings, root: Path, workers: int | None = None, progress: bool = True) -> Path:
    """Generate the dataset, or the missing part of it, and return the path of its split file.

    Clips do not depend on the number of processes. Of two simultaneous calls, the second one waits and then finds the
    complete dataset. With more than one worker, call it under ``if __name__ == "__main__"``.

    Args:
        settings: of the data set.
        root: folder of the dataset, created if absent.
        workers: number of drawing processes; None uses one per core, 1 draws in this process.
        progress: show a progress bar and messages.

    Raises:
        DmgalError: a value is out of range, the root has other files or a dataset with other settings, or it cannot
            be written.
    """
    root = Path(root)
    if workers is not None and workers < 1:
        raise settings.bad_value("workers", workers, "at least 1, or None for one per core")
    log = partial(logging.getLogger(__name__).log, logging.INFO if progress else logging.DEBUG)
    try:
        _refuse_foreign_files(root, settings)  # before a lock is written beside them
        root.mkdir(parents=True, exist_ok=True)
        if (root / settings.manifest).exists() and _is_finished(root, settings) and not _damaged_clips(root, settings):
            return root / SPLIT_FILE  # without the lock, since the folder of a complete dataset may be read-only
        wait = partial(log, f"Waiting for another process: {settings.DATA_SET} in {root}.")
        with exclusively(root / settings.lock, wait):
            clips = _damaged_clips(root, settings) if _is_finished(root, settings) else _clips(settings)
            if clips:
                _generate(root, settings, clips, workers, progress)
            else:
                log(f"{settings.DATA_SET.capitalize()} in {root}: found finished.")
    except OSError as error:
        raise DmgalError(
            f"Cannot generate {settings.DATA_SET} in {root}.",
            received=str(error),
            expected=f"a writable folder with about {settings.MEGABYTES} MB of free space",
            remedy="Choose another folder, or fix the cause and run again. The next run resumes this one.",
        ) from error
    return root / SPLIT_FILE


def _generate(root: Path, settings: ClipSettings, clips: list[Clip], workers: int | None, progress: bool) -> None:
    if not (root / settings.manifest).exists():
        _write_json(root / settings.promise, settings.description())
    for _, _, path in clips:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    tasks = [clips[start : start + CLIPS_PER_TASK] for start in range(0, len(clips), CLIPS_PER_TASK)]
    with progress_bar(progress=progress, total=len(clips), desc=settings.DATA_SET, unit="clip") as bar:
        for count in completed(partial(_write_clips, root, settings), tasks, workers):
            bar.update(count)
    for leftover in root.glob("*/*/.*.mp4"):  # of killed runs
        leftover.unlink(missing_ok=True)
    write_rows(root / SPLIT_FILE, _rows(settings))
    sizes = {path: (root / path).stat().st_size for _, _, path in _clips(settings)}
    _write_json(root / settings.manifest, {**settings.description(), "bytes": sizes})
    (root / settings.promise).unlink(missing_ok=True)


def _write_clips(root: Path, settings: ClipSettings, clips: Iterable[Clip]) -> int:
    """Write the missing and incomplete ones of some clips, and return the number of all of them."""
    count = 0
    for motion, clip, path in clips:
        if not _is_complete(root / path, settings):
            write_video(root / path, settings.clip(motion, clip))
        count += 1
    return count


def _is_complete(path: Path, settings: ClipSettings) -> bool:
    if not path.exists():
        return False
    try:
        return read_clip(path, range).shape == (settings.frames, 3, settings.pixels, settings.pixels)
    except VideoError:
        return False


def _clips(settings: ClipSettings) -> list[Clip]:
    classes = settings.classes()
    return [
        (motion, clip, f"{split}/{classes[motion].name}/{classes[motion].name}_{clip:02d}.mp4")
        for split, motions in settings.split().items()
        for motion in motions
        for clip in range(settings.clips_per_class)
    ]


def _rows(settings: ClipSettings) -> Iterator[tuple[str, str, str, str]]:
    classes = settings.classes()
    for motion, _, path in _clips(settings):
        yield path.partition("/")[0], classes[motion].name, path, classes[motion].reversal or ""


def _damaged_clips(root: Path, settings: ClipSettings) -> list[Clip]:
    """Return the missing and resized clips of a finished dataset, or all clips if its split file is missing."""
    sizes = read_json(root / settings.manifest).get("bytes")
    if not isinstance(sizes, dict):
        return _clips(settings)
    if not (root / SPLIT_FILE).exists():
        return _clips(settings)
    return [clip for clip in _clips(settings) if _size(root / clip[2]) != sizes.get(clip[2])]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _is_finished(root: Path, settings: ClipSettings) -> bool:
    """Return True if this dataset was finished in the root, even if it was damaged since, and False otherwise.

    Raises:
        DmgalError: the root has another dataset or files of unknown origin.
    """
    _refuse_foreign_files(root, settings)
    names = settings.manifest, settings.promise
    file = next((root / name for name in names if (root / name).exists()), None)
    if file is None:
        return False
    stored, wanted = read_json(file), settings.description()
    other = [name for name, value in wanted.items() if stored.get(name) != value]
    if other:
        raise _bad_root(
            root,
            settings,
            ", ".join(f"a dataset with {name}={stored.get(name)!r}" for name in other),
            ", ".join(f"{name}={wanted[name]!r}" for name in other),
        )
    return file.name == settings.manifest


def _refuse_foreign_files(root: Path, settings: ClipSettings) -> None:
    """Raise a DmgalError if the root has any files of other origin and no dataset of this kind."""
    names = settings.promise, settings.manifest
    ours = re.compile(rf"{re.escape(settings.lock)}|\.\d+\.({'|'.join(map(re.escape, names))})")  # or left by a kill
    foreign = sorted(name for name in os.listdir(root) if not ours.fullmatch(name)) if root.is_dir() else []
    # Another process may have begun since. It writes the manifest before it removes the promise.
    if foreign and not any((root / name).exists() for name in names):
        raise DmgalError(
            f"Cannot generate {settings.DATA_SET} in {root}.",
            received=f"{listed(foreign)}, but no {settings.manifest}",
            expected="an empty folder or a generated dataset",
            remedy="Choose another folder. A recipe reads the videos of this one if data.generate is no.",
        )


def _bad_root(root: Path, settings: ClipSettings, received: str, expected: str) -> DmgalError:
    return DmgalError(
        f"Cannot generate {settings.DATA_SET} in {root}.",
        received=received,
        expected=expected,
        remedy="Choose another folder, use the values of the existing dataset, or delete it. A recipe reads the videos "
        "as they are if data.generate is no.",
    )


def _write_json(path: Path, content: dict[str, object]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


FRAMES_PER_SECOND = 10
# The quality preserves colors and edges. Without zerolatency, x264 looks ahead at later frames to distribute bits,
# and its output for small pictures differs between runs.
OPTIONS = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}


def write_video(path: Path, clip: Tensor) -> None:
    """Write uint8 RGB ``(T, 3, H, W)`` with even H and W as H.264 in an mp4 file.

    The file gets its name when it is complete.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        _encode(temporary, clip)


def _encode(path: Path, clip: Tensor) -> None:
    # "file:" keeps FFmpeg from reading a name with a colon as a protocol.
    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=OPTIONS)
        stream.height, stream.width = clip.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the output depends on the number of threads
        for image in rearrange(clip, "t c h w -> t h w c").contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
