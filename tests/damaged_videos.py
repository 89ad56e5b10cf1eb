"""Damages video files in ways that a seed decides, and checks what reading them gives; run as a program by the tests.

    python damaged_videos.py FOLDER FIRST_SEED LAST_SEED

reads one damaged variant of a file in FOLDER per seed, each named on the output before it is read, so that whoever
started this process knows which one killed it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
from pathlib import Path

MAX_BYTES = 8 * 2**30  # of addresses, of which torch takes some by itself
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def damaged(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """``data`` cut short, overwritten, or mixed with ``other``."""
    changed = bytearray(data)
    way = draw.choice(["cut", "flip", "flip", "header", "header", "zeros", "splice", "numbers", "shift"])
    if way == "cut":
        del changed[draw.randrange(len(changed)) :]
    elif way == "flip":
        for _ in range(draw.choice([1, 2, 10, 100])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif way == "header":
        for _ in range(draw.choice([1, 3, 10])):
            near_an_end = draw.randrange(min(len(changed), 1500))
            changed[draw.choice([near_an_end, -1 - near_an_end])] = draw.choice([*INTERESTING, draw.randrange(256)])
    elif way == "zeros":
        start = draw.randrange(len(changed))
        end = min(len(changed), start + draw.randrange(1, 2000))
        changed[start:end] = bytes(end - start)
    elif way == "splice":
        start = draw.randrange(min(len(data), len(other)))
        changed = bytearray(data[:start] + other[start:])
    elif way == "numbers":
        for _ in range(draw.choice([1, 4])):
            start = draw.randrange(max(1, len(changed) - 4))
            number = draw.choice([0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, draw.getrandbits(32)])
            changed[start : start + 4] = number.to_bytes(4, draw.choice(["big", "little"]))
    else:
        start = draw.randrange(len(changed))
        del changed[start : start + draw.randrange(1, 50)]
    return bytes(changed)


def variant(folder: Path, seed: int) -> tuple[str, bytes]:
    """Name of the file that the seed chooses, and what it makes of it."""
    draw = random.Random(seed)
    files = sorted(folder.iterdir())
    path, other = draw.choice(files), draw.choice(files)
    return path.name, damaged(path.read_bytes(), other.read_bytes(), draw)


def check(path: Path) -> str:
    """What reading gives: frames or one clean error; anything else is raised."""
    from dmgal.episodes.frames import uniform_frames
    from dmgal.episodes.video import VideoError, probe_video, read_clip

    handles = len(os.listdir("/proc/self/fd"))
    try:
        probe = probe_video(path)
    except VideoError as error:
        assert "received:" in str(error)
        probe = None
    try:
        clip = read_clip(path, lambda count: uniform_frames(count, 8))
        assert clip.dtype.itemsize == 1 and clip.shape[:2] == (8, 3)
        assert probe is not None, "frames of a video that probing refuses"
    except VideoError as error:
        assert "received:" in str(error)
    assert len(os.listdir("/proc/self/fd")) == handles, "a handle leaked"
    if probe is None:
        return "refused"
    return "read" if probe.problem is None else "begins"


def main() -> None:
    """Check the seeds in a range; the last line says how often each outcome came, and the most memory ever taken."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    outcomes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as here:
        for seed in range(first, last):
            name, data = variant(folder, seed)
            path = Path(here) / f"{seed}{Path(name).suffix}"
            path.write_bytes(data)
            print(seed, name, flush=True)
            outcome = check(path)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            path.unlink()
    outcomes["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main()
