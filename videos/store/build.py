"""Resumable build of a store: decoding in parallel, writing in one process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from xxhash import xxh3_64_intdigest

from ...errors import DmgalError
from ...files import atomic_write, exclusively, listed, write_text
from ...parallel import completed
from ...progress import progress_bar
from ..catalog.catalog import VideoCatalog
from ..catalog.files import content_hash, stamp
from ..decoding.base import VideoError
from .content import Content, EvaluationClips, TrainingFrames
from .store import DATA, INDEX, KEY, Record, read_records, require_key

LOCK_FILE = ".store.lock"

logger = logging.getLogger(__name__)


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
        raise DmgalError(
            "Cannot build a store like this.",
            received=f"workers={workers}",
            expected="at least 1, or None",
            remedy="Change workers.",
        )
    contents: tuple[tuple[Content, tuple[str, ...]], ...] = (
        (clips, ("val", "test")),
        (frames or TrainingFrames(), ("train",)),
    )
    parts = [(content, _videos(catalog, splits)) for content, splits in contents]
    build = partial(_build_part, catalog.root, Path(folder), workers=workers, check=check, progress=progress)
    return tuple(build(content, videos) for content, videos in parts if videos)


def _videos(catalog: VideoCatalog, splits: Sequence[str]) -> list[str]:
    if catalog.class_splits is None:
        return list(catalog.videos)
    present = [split for split in splits if split in catalog.class_splits]
    return [video for split in present for video in catalog.split(split).videos]


_Job = tuple[str, Record | None]
"""A video to store, and the record of its intact block, if there is one."""


def _build_part(
    root: Path, folder: Path, content: Content, videos: Sequence[str], workers: int | None, check: bool, progress: bool
) -> PartReport:
    part = folder / content.name
    num_decoded = 0
    try:
        part.mkdir(parents=True, exist_ok=True)
        with exclusively(part / LOCK_FILE, lambda: logger.info("Waiting for another process that builds %s.", part)):
            _claim(part, content)
            records = read_records(part)
            _delete_invalid(part, records)
            with open(part / DATA, "a+b") as data, open(part / INDEX, "ab") as index:
                jobs = _find_jobs(data, records, root, videos, check, progress)
                num_current, name = len(videos) - len(jobs), f"store {content.name}"
                bar = progress_bar(total=len(videos), initial=num_current, desc=name, unit="video", progress=progress)
                with bar:
                    for record, block in completed(partial(_encode, content, root), jobs, workers):
                        if block is not None:
                            record = record._replace(offset=data.seek(0, os.SEEK_END))
                            data.write(block)
                            data.flush()
                            os.fsync(data.fileno())
                            num_decoded += 1
                        index.write(record.line())
                        index.flush()
                        records[record.video] = record
                        bar.update()
    except BrokenPipeError:  # from printing, not from the store
        raise
    except OSError as error:
        raise DmgalError(
            f"Cannot write the store {part}.",
            received=str(error),
            expected=f"a writable folder with space for {len(videos)} videos, "
            f"of which {_size(part) / 2**20:.0f} MB are stored",
            remedy="Fix the cause, such as a full disk, and build the store again. It resumes from the stored videos.",
        ) from error
    unreadable = tuple(video for video in videos if not records[video].frames)
    return PartReport(content.name, len(videos), num_decoded, unreadable, _size(part))


def _claim(part: Path, content: Content) -> None:
    """Write the key of an empty part, or raise DmgalError if the part has other content."""
    if (part / KEY).exists():
        require_key(part, content.description())
        return
    foreign_files = sorted(path.name for path in part.iterdir() if not path.name.startswith("."))
    if foreign_files:
        raise DmgalError(
            f"Cannot build a store in {part}.",
            received=f"{listed(foreign_files)}, but no {KEY}",
            expected="an empty folder",
            remedy="Choose an empty folder.",
        )
    write_text(part / KEY, json.dumps(content.description(), indent=1))


def _delete_invalid(part: Path, records: dict[str, Record]) -> None:
    """Delete what a killed build or damage left: other lines of the index, and data after the last block."""
    lines = b"".join(record.line() for record in records.values())
    if (part / INDEX).exists() and (part / INDEX).read_bytes() != lines:
        with atomic_write(part / INDEX) as temporary:
            temporary.write_bytes(lines)
    with open(part / DATA, "ab") as data:
        data.truncate(max((record.offset + record.length for record in records.values()), default=0))


def _find_jobs(
    data: BinaryIO, records: dict[str, Record], root: Path, videos: Sequence[str], check: bool, progress: bool
) -> list[_Job]:
    """Return jobs for videos without a record, with a changed stamp or, if ``check``, with a damaged block."""
    jobs: list[_Job] = []
    for video in progress_bar(videos, desc="check store", unit="video", leave=False, progress=progress):
        record = records.get(video)
        if record is None or (check and not _is_intact(data, record)):
            jobs.append((video, None))
        elif stamp(root / video) != (record.size, record.time):
            jobs.append((video, record))
    return jobs


def _is_intact(data: BinaryIO, record: Record) -> bool:
    data.seek(record.offset)
    return xxh3_64_intdigest(data.read(record.length)) == record.checksum


def _encode(content: Content, root: Path, job: _Job) -> tuple[Record, bytes | None]:
    """Return the record and block of a video, or None as the block if the content of the video is unchanged."""
    video, record = job
    path = root / video
    # Taken before decoding, so that a video that changes meanwhile counts as stale.
    (size, time), source = stamp(path), content_hash(path)
    if record is not None and source == record.source != 0:
        return record._replace(size=size, time=time), None
    try:
        frames, block, reason = content.encode(path)
    except VideoError as error:
        frames, block, reason = 0, b"", error.received or ""
    return Record(video, size, time, source, 0, len(block), frames, xxh3_64_intdigest(block), reason), block


def _size(part: Path) -> int:
    return sum(path.stat().st_size for path in part.glob("*.bin"))
