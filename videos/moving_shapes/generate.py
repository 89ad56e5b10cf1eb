"""Moving shapes on disk: 100 motions as small H.264 files, 64 base, 12 validation and 24 novel classes.

The files are ``root/<split>/<class>/<class>_<clip>.mp4``, ``root/split.csv`` (with each class's reversal), and
``moving_shapes.json``, which is written last and marks a complete dataset. Until then ``moving_shapes.unfinished.json``
records the settings, so that an interrupted run can be resumed with the same settings only. The clips depend only on
the settings. No download is needed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import av
from einops import rearrange
from torch import Tensor

from ...errors import DmgalError
from ...files import atomic_write, exclusively, read_json, write_text
from ...parallel import completed
from ...progress import progress_bar
from ..catalog.lists import SPLITS, write_rows
from ..decoding.base import VideoError
from ..decoding.video import read_clip
from .clips import MovingShapes, invalid_value
from .motions import all_motions, split_motions

VERSION = 1  # increment on every change of the drawing or the encoding
SPLIT_FILE, MANIFEST, PROMISE = "split.csv", "moving_shapes.json", "moving_shapes.unfinished.json"
LOCK_FILE = ".moving_shapes.lock"
CLIPS_PER_TASK = 10

Clip = tuple[int, int, str]
"""Index of the class, number of the clip in it, and path relative to the root."""


def generate_moving_shapes(
    root: Path,
    seed: int = 0,
    clips_per_class: int = 30,
    frames: int = 16,
    pixels: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Generate the dataset, or the missing part of it, and return the path of its split file.

    Clips do not depend on the number of processes. Of two simultaneous calls, the second one waits and then finds the
    complete dataset. With more than one worker, call it under ``if __name__ == "__main__"``.

    Args:
        root: folder of the dataset, created if absent.
        seed: determines the split and all clips.
        clips_per_class: number of clips in each of the 100 classes.
        frames: number of frames per clip, at 10 frames per second.
        pixels: height and width.
        workers: number of drawing processes; None uses one per core, 1 draws in this process.
        progress: show a progress bar and messages.

    Raises:
        DmgalError: a value is out of range, the root has other files or a dataset with other settings, or it cannot
            be written.
    """
    root, shapes = Path(root), MovingShapes(seed, clips_per_class, frames, pixels)
    if workers is not None and workers < 1:
        raise invalid_value("workers", workers, "at least 1, or None for one per core")
    log = partial(logging.getLogger(__name__).log, logging.INFO if progress else logging.DEBUG)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (root / MANIFEST).exists() and _is_finished(root, shapes) and not _damaged_clips(root, shapes):
            return root / SPLIT_FILE  # without the lock, since the folder of a complete dataset may be read-only
        with exclusively(root / LOCK_FILE, lambda: log(f"Waiting for another process: moving shapes in {root}.")):
            clips = _damaged_clips(root, shapes) if _is_finished(root, shapes) else _clips(shapes)
            if clips:
                _generate(root, shapes, clips, workers, progress)
            else:
                log(f"Moving shapes in {root}: found finished.")
    except OSError as error:
        raise DmgalError(
            f"Cannot generate moving shapes in {root}.",
            received=str(error),
            expected="a writable folder with about 70 MB of free space",
            remedy="Choose another root, or fix the cause and run again. The next run resumes this one.",
        ) from error
    return root / SPLIT_FILE


def _generate(root: Path, shapes: MovingShapes, clips: list[Clip], workers: int | None, progress: bool) -> None:
    if not (root / MANIFEST).exists():
        _write_json(root / PROMISE, _description(shapes))
    for _, _, path in clips:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    tasks = [clips[start : start + CLIPS_PER_TASK] for start in range(0, len(clips), CLIPS_PER_TASK)]
    with progress_bar(progress=progress, total=len(clips), desc="moving shapes", unit="clip") as bar:
        for count in completed(partial(_write_clips, root, shapes), tasks, workers):
            bar.update(count)
    for leftover in root.glob("*/*/.*.mp4"):  # of killed runs
        leftover.unlink(missing_ok=True)
    write_rows(root / SPLIT_FILE, _rows(shapes))
    sizes = {path: (root / path).stat().st_size for _, _, path in _clips(shapes)}
    _write_json(root / MANIFEST, {**_description(shapes), "bytes": sizes})
    (root / PROMISE).unlink(missing_ok=True)


def _write_clips(root: Path, shapes: MovingShapes, clips: Iterable[Clip]) -> int:
    """Write the missing and incomplete ones of some clips, and return the number of all of them."""
    count = 0
    for motion, clip, path in clips:
        if not _is_complete(root / path, shapes):
            write_video(root / path, shapes.clip(motion, clip))
        count += 1
    return count


def _is_complete(path: Path, shapes: MovingShapes) -> bool:
    if not path.exists():
        return False
    try:
        return read_clip(path, range).shape == (shapes.frames, 3, shapes.pixels, shapes.pixels)
    except VideoError:
        return False


def _clips(shapes: MovingShapes) -> list[Clip]:
    motions = all_motions()
    return [
        (motion, clip, f"{split}/{motions[motion].name}/{motions[motion].name}_{clip:02d}.mp4")
        for split, classes in split_motions(shapes.seed).items()
        for motion in classes
        for clip in range(shapes.clips_per_class)
    ]


def _rows(shapes: MovingShapes) -> Iterator[tuple[str, str, str, str]]:
    motions = all_motions()
    for motion, _, path in _clips(shapes):
        yield path.partition("/")[0], motions[motion].name, path, motions[motion].reversal or ""


def _damaged_clips(root: Path, shapes: MovingShapes) -> list[Clip]:
    """Return the missing and resized clips of a finished dataset, or all clips if its split file is missing."""
    sizes = read_json(root / MANIFEST).get("bytes", {})
    if not (root / SPLIT_FILE).exists():
        return _clips(shapes)
    return [clip for clip in _clips(shapes) if _size(root / clip[2]) != sizes.get(clip[2])]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _is_finished(root: Path, shapes: MovingShapes) -> bool:
    """Return True if this dataset was finished in the root, even if it was damaged since, and False otherwise.

    Raises:
        DmgalError: the root has another dataset or files of unknown origin.
    """
    file = next((root / name for name in (MANIFEST, PROMISE) if (root / name).exists()), None)
    if file is None:
        foreign_files = [name for name in (*SPLITS, SPLIT_FILE) if (root / name).exists()]
        if foreign_files:
            raise DmgalError(
                f"Cannot generate moving shapes in {root}.",
                received=f"{', '.join(foreign_files)}, but no {MANIFEST}",
                expected="an empty folder or a generated dataset",
                remedy="Choose another root, use the values of the existing dataset, or delete it.",
            )
        return False
    stored, wanted = read_json(file), _description(shapes)
    other = [name for name, value in wanted.items() if stored.get(name) != value]
    if other:
        raise DmgalError(
            f"Cannot generate moving shapes in {root}.",
            received=", ".join(f"a dataset with {name}={stored.get(name)!r}" for name in other),
            expected=", ".join(f"{name}={wanted[name]!r}" for name in other),
            remedy="Choose another root, use the values of the existing dataset, or delete it.",
        )
    return file.name == MANIFEST


def _description(shapes: MovingShapes) -> dict[str, Any]:
    return {"data_set": "moving shapes", "version": VERSION, **asdict(shapes)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
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
    # "file:" keeps FFmpeg from reading a name with a colon as a protocol.
    with atomic_write(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=OPTIONS)
        stream.height, stream.width = clip.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the output depends on the number of threads
        for image in rearrange(clip, "t c h w -> t h w c").contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
