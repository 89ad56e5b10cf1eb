"""Program that kills builds of stores at chosen times or limits their file size, and checks the resulting stores.

    python interrupted_builds.py VIDEOS FOLDER kill EVERY
    python interrupted_builds.py VIDEOS FOLDER limit BYTES

It prints JSON. It is a separate process, because forking children requires a parent without threads.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from xxhash import xxh3_64_intdigest

from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.decoding.clip import TestTransform
from dmgal.videos.store import build as store_build
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips
from dmgal.videos.store.store import DATA, INDEX, StoredClips, StoredFrames, read_records

CLIPS = EvaluationClips(4, TestTransform(32))
PARTS = ("test", "train")


def build(catalog: VideoCatalog, folder: Path) -> None:
    build_store(catalog, folder, CLIPS, workers=1, progress=False)


def run_in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a child process and return the signal that ended it, or its negated exit code."""
    child = os.fork()
    if not child:
        code = 70
        try:
            work()
            code = 0
        except DmgalError as error:
            print(error, file=sys.stderr, flush=True)
            code = 2
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def kill_at(moment: int) -> None:
    """Kill this process at the ``moment``-th change of a file: before, during or after it."""
    count = 0
    fsync, replace = os.fsync, os.replace

    def step() -> None:
        nonlocal count
        count += 1
        if count > moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing_open(path: Path, mode: str) -> BinaryIO:
        file = open(path, mode)  # noqa: SIM115 (the caller closes it)
        write = file.write

        def killing_write(data: bytes) -> None:
            for start, end in ((0, 0), (0, 1), (1, len(data) // 2), (len(data) // 2, len(data))):
                write(data[start:end])
                file.flush()
                step()

        file.write = killing_write
        return file

    store_build.open = killing_open
    os.fsync = lambda handle: (fsync(handle), step())
    os.replace = lambda one, two: (step(), replace(one, two), step())


def count_valid_blocks(folder: Path) -> int:
    """Return the number of blocks that a reader would find, after verifying their checksums."""
    found = 0
    for part in (folder / name for name in PARTS):
        for record in read_records(part).values():
            with open(part / DATA, "rb") as data:
                data.seek(record.offset)
                assert xxh3_64_intdigest(data.read(record.length)) == record.checksum, (part, record)
            found += 1
    return found


def read_content(catalog: VideoCatalog, folder: Path) -> list[torch.Tensor]:
    """Return all clips and frames of a store."""
    clips = StoredClips(folder, catalog, CLIPS)
    frames = StoredFrames(folder, catalog)
    return [read(v) for v in range(len(catalog)) for read in (clips.read, lambda v: frames.read(v, range))]


def run_killed(catalog: VideoCatalog, folder: Path, every: int) -> dict[str, object]:
    build(catalog, folder)
    wanted, found, moment = read_content(catalog, folder), [], 0
    while True:
        shutil.rmtree(folder)

        def work(moment: int = moment) -> None:
            kill_at(moment)
            build(catalog, folder)

        if run_in_child(work) == 0:
            break
        found.append(count_valid_blocks(folder))
        second = run_in_child(work)  # killed again while it resumes, or finished
        assert second in (0, signal.SIGKILL), second
        assert count_valid_blocks(folder) >= found[-1]
        build(catalog, folder)
        lengths = {part: len((folder / part / INDEX).read_bytes().splitlines()) for part in PARTS}
        assert set(lengths.values()) == {len(catalog)}, lengths
        again = read_content(catalog, folder)
        assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True)), moment
        moment += every
    return {"kills": len(found), "found": found}


def run_limited(catalog: VideoCatalog, folder: Path, size: int) -> dict[str, object]:
    build(catalog, folder)
    wanted = read_content(catalog, folder)
    shutil.rmtree(folder)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        build(catalog, folder)

    ended = run_in_child(work)
    found = count_valid_blocks(folder)
    build(catalog, folder)
    again = read_content(catalog, folder)
    assert all(torch.equal(one, other) for one, other in zip(wanted, again, strict=True))
    return {"ended": ended, "found": found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    videos, folder, mode, number = sys.argv[1:]
    catalog = VideoCatalog.from_folders(videos)
    run = {"kill": run_killed, "limit": run_limited}[mode]
    print(json.dumps(run(catalog, Path(folder), int(number))))
