"""Moving shapes on disk: 100 motions as small mp4 files, 64 base, 12 validation and 24 novel classes. Made offline.

``root/<split>/<class>/<class>_<clip>.mp4``, ``root/split.csv`` (with each class's reversal), and, written last,
``moving_shapes.json``: a set is finished once it is there. Until then ``moving_shapes.unfinished.json`` says what is
being made, so that a killed run can be continued, and only with the same values.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import DmgalError
from ..catalogs.split_files import SPLITS, write_rows
from ..decoding.video_writer import UNFINISHED, write_video
from ..exclusive import exclusively
from ..parallel import completed
from ..video import VideoError, read_clip
from .motions import all_motions, split_motions
from .moving_shapes_clips import MovingShapes

VERSION = 1  # goes up with every change of what is drawn or how it is written
SPLIT_FILE, MANIFEST, PROMISE = "split.csv", "moving_shapes.json", "moving_shapes.unfinished.json"
LOCK_FILE = ".moving_shapes.lock"
CLIPS_PER_TASK = 10

Clip = tuple[int, int, str]
"""Class, number of the clip in it, path relative to the root."""


def generate_moving_shapes(
    root: Path,
    seed: int = 0,
    clips_per_class: int = 30,
    frames: int = 16,
    pixels: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the data set, or what is missing of it, and return its split file.

    Clips do not depend on the number of processes. Asked for twice at once, it is made once: the second call waits.
    With more than one worker, call it under ``if __name__ == "__main__"``, as ever when Python starts processes.

    Args:
        root: folder of the set, made where absent.
        seed: decides the split and every clip.
        clips_per_class: of each of the 100 classes.
        frames: of a clip, shown at 10 per second.
        pixels: height and width.
        workers: processes that draw; None takes one per core, 1 draws in this process.
        progress: whether to show a progress bar and say when a set was found finished.

    Raises:
        DmgalError: values out of range, a root that holds something else or a set with other values, or one that
            cannot be written.
    """
    root, shapes = Path(root), MovingShapes(seed, clips_per_class, frames, pixels)
    if workers is not None and workers < 1:
        raise DmgalError(
            "moving shapes cannot be made like this",
            received=f"workers={workers}",
            expected="at least 1, or None for one per core",
            remedy="change workers",
        )
    tell = partial(print, file=sys.stderr) if progress else _silent
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (root / MANIFEST).exists() and _refuse_other_sets(root, shapes) and not _damaged(root, shapes):
            return root / SPLIT_FILE  # without the lock: a finished set may lie where nobody can write
        with exclusively(root / LOCK_FILE, lambda: tell(f"another process makes moving shapes in {root}: waiting")):
            if _refuse_other_sets(root, shapes) and not (damaged := _damaged(root, shapes)):
                tell(f"moving shapes in {root}: found finished")
            else:
                _make(root, shapes, damaged if (root / MANIFEST).exists() else _clips(shapes), workers, progress)
    except OSError as error:
        raise DmgalError(
            f"cannot make moving shapes in {root}",
            received=str(error),
            expected="a folder that can be made and written, with about 70 MB left",
            remedy="choose another root, or mend the cause; a later run continues this one",
        ) from error
    return root / SPLIT_FILE


def _silent(message: str) -> None:
    """Tell nobody."""


def _make(root: Path, shapes: MovingShapes, clips: list[Clip], workers: int | None, progress: bool) -> None:
    if not (root / MANIFEST).exists():
        _write_json(root / PROMISE, _description(shapes))
    for _, _, path in clips:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    tasks = [clips[start : start + CLIPS_PER_TASK] for start in range(0, len(clips), CLIPS_PER_TASK)]
    with tqdm(total=len(clips), desc="moving shapes", unit="clip", disable=not progress) as bar:
        for done in completed(partial(_write_clips, root, shapes), tasks, workers):
            bar.update(done)
    for leftover in root.glob(f"*/*/.*{UNFINISHED}"):  # of runs that were killed
        leftover.unlink(missing_ok=True)
    write_rows(root / SPLIT_FILE, _rows(shapes))
    sizes = {path: (root / path).stat().st_size for _, _, path in _clips(shapes)}
    _write_json(root / MANIFEST, {**_description(shapes), "bytes": sizes})
    (root / PROMISE).unlink(missing_ok=True)


def _write_clips(root: Path, shapes: MovingShapes, clips: Iterable[Clip]) -> int:
    """Write the clips that are not there, or not whole; how many were looked after."""
    count = 0
    for motion, clip, path in clips:
        if not _is_whole(root / path, shapes):
            write_video(root / path, shapes.clip(motion, clip))
        count += 1
    return count


def _is_whole(path: Path, shapes: MovingShapes) -> bool:
    if not path.exists():
        return False
    try:
        return read_clip(path, range).shape == (shapes.frames, 3, shapes.pixels, shapes.pixels)
    except VideoError:
        return False


def _clips(shapes: MovingShapes) -> list[Clip]:
    motions = all_motions()
    return [
        (c, clip, f"{split}/{motions[c].name}/{motions[c].name}_{clip:02d}.mp4")
        for split, classes in split_motions(shapes.seed).items()
        for c in classes
        for clip in range(shapes.clips_per_class)
    ]


def _rows(shapes: MovingShapes) -> Iterator[tuple[str, str, str, str]]:
    motions = all_motions()
    for motion, _, path in _clips(shapes):
        yield path.partition("/")[0], motions[motion].name, path, motions[motion].reversal or ""


def _damaged(root: Path, shapes: MovingShapes) -> list[Clip]:
    """Clips of a finished set that have vanished or changed in size; all, where its split file has vanished."""
    sizes = _read_json(root / MANIFEST).get("bytes", {})
    if not (root / SPLIT_FILE).exists():
        return _clips(shapes)
    return [clip for clip in _clips(shapes) if _size(root / clip[2]) != sizes.get(clip[2])]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _refuse_other_sets(root: Path, shapes: MovingShapes) -> bool:
    """Whether this very set was finished in the root, perhaps damaged since; False where there is none yet, or part.

    Raises:
        DmgalError: the root holds another set, or files of nobody knows which.
    """
    file = next((root / name for name in (MANIFEST, PROMISE) if (root / name).exists()), None)
    if file is None:
        strangers = [name for name in (*SPLITS, SPLIT_FILE) if (root / name).exists()]
        if strangers:
            _refuse(root, f"{', '.join(strangers)}, but no {MANIFEST}", "an empty folder, or one made by this function")
        return False
    stored, wanted = _read_json(file), _description(shapes)
    other = [name for name, value in wanted.items() if stored.get(name) != value]
    if other:
        _refuse(
            root,
            ", ".join(f"a set with {name}={stored.get(name)!r}" for name in other),
            ", ".join(f"{name}={wanted[name]!r}" for name in other),
        )
    return file.name == MANIFEST


def _refuse(root: Path, received: str, expected: str) -> None:
    raise DmgalError(
        f"cannot make moving shapes in {root}",
        received=received,
        expected=expected,
        remedy="choose another root, ask for the values of the set that is there, or delete it",
    )


def _description(shapes: MovingShapes) -> dict[str, Any]:
    return {"data_set": "moving shapes", "version": VERSION, **asdict(shapes)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
