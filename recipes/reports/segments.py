"""Segments of long videos as annotations: CSV, predictions for Label Studio, and tracks for CVAT.

Unknown actions are omitted. A video is named relative to the folder of the file if it is below it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from dmgal.errors import DmgalError
from dmgal.files import atomic_write, printable
from dmgal.recipes.run.recognition import Recognized
from dmgal.videos.annotations.cvat import write_cvat
from dmgal.videos.annotations.label_studio import write_label_studio
from dmgal.videos.annotations.segment import Span
from dmgal.videos.annotations.written import WrittenSegment, WrittenVideo
from dmgal.videos.catalog.lists import write_rows
from dmgal.videos.decoding.segments import FrameTimes, frame_times
from dmgal.videos.decoding.video import open_video

COLUMNS = ("video", "label", "start", "end", "score")


def _write_csv(path: Path, videos: Sequence[WrittenVideo]) -> None:
    rows = (
        (video.name, one.label, f"{one.start:.3f}", f"{one.end:.3f}", f"{one.score:.4f}")
        for video in videos
        for one in video.segments
    )
    write_rows(path, rows, COLUMNS)


WRITERS: dict[str, Callable[[Path, Sequence[WrittenVideo]], None]] = {
    ".csv": _write_csv,
    ".json": write_label_studio,
    ".xml": write_cvat,
}


def check_output(path: Path, num_videos: int) -> None:
    """Raise a DmgalError if the segments of this many videos cannot be written to a file of this name."""
    is_single = path.suffix.lower() == ".xml"
    if path.suffix.lower() not in WRITERS or (is_single and num_videos != 1) or not path.absolute().parent.is_dir():
        raise DmgalError(
            "The segments cannot be written to this file.",
            received=f"{printable(str(path))} for {num_videos} videos",
            expected="in an existing folder, a file .csv, .json for Label Studio, or .xml for CVAT with a single video",
            remedy="Choose another --out, or recognize one video at a time.",
        )


def write_segments(path: Path, results: Sequence[Recognized], names: Sequence[str], fps: float | None = None) -> None:
    """Write the known segments of long videos, in the format of the file's extension.

    Args:
        path: file to write, see `check_output`. An existing file is replaced.
        results: of `recognize_videos` with windows.
        names: of the classes.
        fps: frames per second of folders of frames.
    """
    folder = path.absolute().parent
    videos = [_written(one, names, folder, fps) for one in results]
    with atomic_write(path) as temporary:
        WRITERS[path.suffix.lower()](temporary, videos)


def _written(one: Recognized, names: Sequence[str], folder: Path, fps: float | None) -> WrittenVideo:
    video = open_video(one.path)
    height, width = video.read([0]).shape[-2:]
    is_images = one.path.is_dir() or one.path.suffix.lower() == ".zip"
    times = _even_times(video.num_frames, fps) if is_images and fps else frame_times(one.path)
    absolute = Path(os.path.abspath(one.path))
    name = absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    return WrittenVideo(name.as_posix(), len(times.ticks), width, height, [*_segments(one, names, times)])


def _segments(one: Recognized, names: Sequence[str], times: FrameTimes) -> Iterator[WrittenSegment]:
    for segment in one.segments:
        frames = times.frames_in(Span.of_seconds(segment.start, segment.end))
        if segment.label is not None and frames:
            ends = frames[0], frames[-1]
            yield WrittenSegment(names[segment.label], segment.start, segment.end, *ends, segment.probability)


def _even_times(num_frames: int, fps: float) -> FrameTimes:
    return FrameTimes(np.arange(num_frames), 1 / Fraction(fps).limit_denominator(100_000))
