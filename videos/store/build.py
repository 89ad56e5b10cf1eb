"""Resumable build of a store: decoding in parallel, writing in one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...files import exclusively, listed
from ...parallel import completed
from ...progress import progress_bar
from ..catalog.catalog import VideoCatalog
from ..catalog.files import content_hash, stamp
from .blocks import Block, BlockReader, BlockWriter, Source, checksum, latest, read_records, video_key
from .content import Content, EvaluationClips, TrainingFrames, claim, refuse

LOCK_FILE = ".store.lock"
VIDEOS_PER_TASK = 4


@dataclass(frozen=True)
class PartReport:
    """Result of a build for one part of a store.

    Args:
        name: "test" or "train".
        videos: number of videos in the part.
        made: number of videos decoded by this build.
        unreadable: paths of videos that cannot be read. Reading them from the store fails with their reason.
        size: of the part on the disk, in bytes.
    """

    name: str
    videos: int
    made: int
    unreadable: tuple[str, ...]
    size: int

    def __str__(self) -> str:
        bad = f"; {len(self.unreadable)} cannot be read: {listed(self.unreadable)}" if self.unreadable else ""
        return f"{self.name}: {self.videos} videos, {self.size / 2**20:.1f} MB, {self.made} decoded now{bad}"


def build_store(
    catalog: VideoCatalog,
    folder: str | os.PathLike[str],
    clips: EvaluationClips,
    frames: TrainingFrames | None = None,
    workers: int | None = None,
    check: bool = False,
    progress: bool = True,
) -> tuple[PartReport, ...]:
    """Build the store of a catalog, or the missing and changed part of it.

    Validation and test videos are stored as test clips, training videos as training frames. Without splits, all videos
    are stored as both. With more than one worker, call it under ``if __name__ == "__main__"``.

    Args:
        catalog: the videos of all splits.
        folder: of the store, created if absent. Of two simultaneous builds, the second one waits.
        clips: kind of the test clips.
        frames: kind of the training frames; None uses the defaults.
        workers: number of decoding processes; None uses one per core, 1 decodes in this process.
        check: read all stored blocks and rebuild those that differ from their checksum.
        progress: show progress bars.

    Raises:
        DmgalError: the folder has a store of other content (the message names the differences), or it cannot be
            written, for example because the disk is full. Blocks stored before stay, and a later build resumes.
    """
    if workers is not None and workers < 1:
        refuse("Cannot build a store like this.", f"workers={workers}", "at least 1, or None", "Change workers.")
    parts: tuple[tuple[Content, tuple[str, ...]], ...] = (
        (clips, ("val", "test")),
        (frames or TrainingFrames(), ("train",)),
    )
    wanted = [(content, _videos(catalog, splits)) for content, splits in parts]
    build = partial(_build_part, catalog.root, Path(folder), workers=workers, check=check, progress=progress)
    return tuple(build(content, videos) for content, videos in wanted if videos)


class _Job(NamedTuple):
    """A video to store, with the position of its record (-1 without one) and the content hash in that record."""

    video: str
    position: int
    content: int


class _Result(NamedTuple):
    """Result of a job. ``data`` is None if the content of the video is unchanged."""

    job: _Job
    source: Source
    frames: int
    data: bytes | None


def _build_part(
    root: Path,
    folder: Path,
    content: Content,
    videos: Sequence[str],
    workers: int | None,
    check: bool,
    progress: bool,
) -> PartReport:
    part = folder / content.name
    num_decoded = 0
    log: Callable[[str], Any] = partial(print, file=sys.stderr) if progress else str
    try:
        part.mkdir(parents=True, exist_ok=True)
        with exclusively(part / LOCK_FILE, lambda: log(f"Waiting for another process that builds the store {part}.")):
            claim(part, content.description())
            with BlockWriter(part) as writer:
                jobs = _find_jobs(part, writer.records, root, videos, check, progress)
                tasks = [jobs[start : start + VIDEOS_PER_TASK] for start in range(0, len(jobs), VIDEOS_PER_TASK)]
                num_current, name = len(videos) - len(jobs), f"store {content.name}"
                with progress_bar(
                    progress=progress, total=len(videos), initial=num_current, desc=name, unit="video"
                ) as bar:
                    for results in completed(partial(_encode, content, root), tasks, workers):
                        num_decoded += _write(writer, results)
                        bar.update(len(results))
            return _report(part, content.name, videos, num_decoded)
    except BrokenPipeError:  # from printing, not from the store
        raise
    except OSError as error:
        refuse(
            f"Cannot write the store {part}.",
            str(error),
            f"a writable folder with space for {len(videos)} videos, of which {_size(part) / 2**20:.0f} MB are stored",
            "Fix the cause, such as a full disk, and build the store again. It resumes from the stored videos.",
        )


def _find_jobs(
    part: Path, records: NDArray[np.void], root: Path, videos: Sequence[str], check: bool, progress: bool
) -> list[_Job]:
    """Return jobs for videos without a record, with a changed stamp or, if ``check``, with a damaged block."""
    positions = latest(records, videos)
    blocks = BlockReader(part, records)
    jobs = []
    bar = progress_bar(videos, progress=progress, desc=f"check {part.name}", unit="video", leave=False)
    for video, position in zip(bar, positions.tolist(), strict=True):
        if position < 0 or (check and checksum(blocks.view(position)) != blocks.checksum(position)):
            jobs.append(_Job(video, -1, 0))
        elif stamp(root / video) != (records[position]["source_bytes"], records[position]["source_time"]):
            jobs.append(_Job(video, position, int(records[position]["source_hash"])))
    return jobs


def _encode(content: Content, root: Path, jobs: Sequence[_Job]) -> list[_Result]:
    results = []
    for job in jobs:
        path = root / job.video
        # Taken before decoding, so that a video that changes meanwhile counts as stale.
        source = Source(*stamp(path), content_hash(path))
        if job.position >= 0 and source.content == job.content != 0:
            results.append(_Result(job, source, 0, None))
        else:
            results.append(_Result(job, source, *content.encode(path)))
    return results


def _write(writer: BlockWriter, results: Sequence[_Result]) -> int:
    """Write the results and return the number of new blocks."""
    unchanged = [result for result in results if result.data is None]
    if unchanged:
        writer.retime([result.job.position for result in unchanged], [result.source for result in unchanged])
    blocks = [
        Block(video_key(result.job.video), result.source, result.frames, result.data)
        for result in results
        if result.data is not None
    ]
    writer.append(blocks)
    return len(blocks)


def _report(part: Path, name: str, videos: Sequence[str], num_decoded: int) -> PartReport:
    records = read_records(part)
    unreadable = records["frames"][latest(records, videos)] == 0
    bad = tuple(video for video, is_bad in zip(videos, unreadable.tolist(), strict=True) if is_bad)
    return PartReport(name, len(videos), num_decoded, bad, _size(part))


def _videos(catalog: VideoCatalog, splits: Sequence[str]) -> list[str]:
    if catalog.class_splits is None:
        return list(catalog.videos)
    present = [split for split in splits if split in catalog.class_splits]
    return [video for split in present for video in catalog.split(split).videos]


def _size(part: Path) -> int:
    return sum(path.stat().st_size for path in part.glob("*.bin"))
