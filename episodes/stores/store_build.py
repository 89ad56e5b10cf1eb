"""Builds a store: decodes in parallel, writes in one process, goes on where an earlier build ended."""

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
from tqdm import tqdm

from ..catalog import VideoCatalog
from ..catalogs.video_identity import content_hash, stamp
from ..exclusive import exclusively
from ..listing import listed
from ..parallel import completed
from .store_blocks import Block, BlockReader, BlockWriter, Source, checksum, latest, read_records, video_key
from .store_content import Content, EvaluationClips, TrainingFrames
from .store_key import claim, refuse

LOCK_FILE = ".store.lock"
VIDEOS_PER_TASK = 4


@dataclass(frozen=True)
class PartReport:
    """What a build did to one part of a store.

    Args:
        name: "test" or "train".
        videos: in the part now.
        made: of these, decoded by this build.
        unreadable: paths of videos that cannot be read; reading them from the store fails with their reason.
        size: of the part on the disk, bytes.
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
    """Make the store of a catalog, or what is missing of it or has changed.

    Test clips are made of validation and test videos, training frames of training videos; of all videos, where the
    catalog has no splits. With more than one worker, call it under ``if __name__ == "__main__"``.

    Args:
        catalog: the videos of all splits.
        folder: of the store, made where absent. Asked for twice at once, the second call waits.
        clips: what a test clip is.
        frames: how training frames are kept; None takes the defaults.
        workers: processes that decode; None takes one per core, 1 decodes in this process.
        check: read everything that is there, and make anew what differs from its checksum.
        progress: whether to show progress bars.

    Raises:
        DmgalError: the folder holds a store of other content (what differs is named), or it cannot be written: a
            full disk, say. What was stored before stays, and a later build goes on from there.
    """
    if workers is not None and workers < 1:
        refuse("a store cannot be built like this", f"workers={workers}", "at least 1, or None", "change workers")
    parts: tuple[tuple[Content, tuple[str, ...]], ...] = (
        (clips, ("val", "test")),
        (frames or TrainingFrames(), ("train",)),
    )
    wanted = [(content, _videos(catalog, splits)) for content, splits in parts]
    make = partial(_build_part, catalog.root, Path(folder), workers=workers, check=check, progress=progress)
    return tuple(make(content, videos) for content, videos in wanted if videos)


class _Job(NamedTuple):
    """A video to look after: ``place`` is that of its record, -1 without one; ``content`` the hash of what it shows."""

    video: str
    place: int
    content: int


class _Done(NamedTuple):
    """``data`` is None where the video shows what it did."""

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
    part, made = folder / content.name, 0
    tell: Callable[[str], Any] = partial(print, file=sys.stderr) if progress else str
    try:
        part.mkdir(parents=True, exist_ok=True)
        with exclusively(part / LOCK_FILE, lambda: tell(f"another process builds the store {part}: waiting")):
            claim(part, content.description())
            with BlockWriter(part) as writer:
                jobs = _jobs(part, writer.records, root, videos, check, progress)
                tasks = [jobs[start : start + VIDEOS_PER_TASK] for start in range(0, len(jobs), VIDEOS_PER_TASK)]
                start, name = len(videos) - len(jobs), f"store {content.name}"
                with tqdm(total=len(videos), initial=start, desc=name, unit="video", disable=not progress) as bar:
                    for results in completed(partial(_encoded, content, root), tasks, workers):
                        made += _write(writer, results)
                        bar.update(len(results))
            return _report(part, content.name, videos, made)
    except BrokenPipeError:  # of what was printed meanwhile
        raise
    except OSError as error:
        refuse(
            f"cannot write the store {part}",
            str(error),
            f"a folder that can be written, with room for {len(videos)} videos; {_size(part) / 2**20:.0f} MB are there",
            "mend the cause, a full disk perhaps, and build it again: it goes on from what is there",
        )


def _jobs(
    part: Path, records: NDArray[np.void], root: Path, videos: Sequence[str], check: bool, progress: bool
) -> list[_Job]:
    """Videos without a record, with another stamp than recorded, or (where it is checked) with a damaged block."""
    places = latest(records, videos)
    sound = BlockReader(part, records)
    jobs = []
    bar = tqdm(videos, desc=f"look into {part.name}", unit="video", leave=False, disable=not progress)
    for video, place in zip(bar, places.tolist(), strict=True):
        if place < 0 or (check and checksum(sound.view(place)) != sound.checksum(place)):
            jobs.append(_Job(video, -1, 0))
        elif stamp(root / video) != (records[place]["source_bytes"], records[place]["source_time"]):
            jobs.append(_Job(video, place, int(records[place]["source_hash"])))
    return jobs


def _encoded(content: Content, root: Path, jobs: Sequence[_Job]) -> list[_Done]:
    results = []
    for job in jobs:
        path = root / job.video
        # before decoding: a video that changes meanwhile is then stale, not taken for the new one
        source = Source(*stamp(path), content_hash(path))
        if job.place >= 0 and source.content == job.content != 0:
            results.append(_Done(job, source, 0, None))
        else:
            results.append(_Done(job, source, *content.encode(path)))
    return results


def _write(writer: BlockWriter, results: Sequence[_Done]) -> int:
    """How many blocks were written."""
    same = [done for done in results if done.data is None]
    if same:
        writer.retime([done.job.place for done in same], [done.source for done in same])
    blocks = [
        Block(video_key(done.job.video), done.source, done.frames, done.data)
        for done in results
        if done.data is not None
    ]
    writer.append(blocks)
    return len(blocks)


def _report(part: Path, name: str, videos: Sequence[str], made: int) -> PartReport:
    records = read_records(part)
    unreadable = records["frames"][latest(records, videos)] == 0
    bad = tuple(video for video, is_bad in zip(videos, unreadable.tolist(), strict=True) if is_bad)
    return PartReport(name, len(videos), made, bad, _size(part))


def _videos(catalog: VideoCatalog, splits: Sequence[str]) -> list[str]:
    if catalog.class_splits is None:
        return list(catalog.videos)
    present = [split for split in splits if split in catalog.class_splits]
    return [video for split in present for video in catalog.split(split).videos]


def _size(part: Path) -> int:
    return sum(path.stat().st_size for path in part.glob("*.bin"))
