"""Cost of a catalog of a million videos in 700 classes: loading it, drawing episodes, resuming a check.

    python -m dmgal.bench.catalog

The videos are empty files in 700 folders of a temporary folder, named as Kinetics names them: only their
decoding is missing. Each measurement runs in its own process, so peak memory is per measurement. The same process
without the work is also measured. Writes ``bench/results/catalog.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from dmgal.bench.measuring import hardware, process_bytes, write_report
from dmgal.episodes import EpisodeSampler
from dmgal.recipes.run import folder as run_folder
from dmgal.videos import VideoCatalog
from dmgal.videos.check_log import CheckLog
from dmgal.videos.checking import CheckedVideo

OUT = Path(__file__).parent / "results" / "catalog.json"
CLASSES = 700
EPISODES = 2000
Result = TypeVar("Result")


def make_data_set(folder: Path, num_videos: int) -> None:
    """Write empty files ``videos/split/class/youtube-id_000010_000020.mp4``, and a split file without extensions."""
    rng = random.Random(0)
    alphabet = string.ascii_letters + string.digits + "-_"
    rows: list[str] = []
    for number in range(CLASSES):
        split = ("train", "val", "test")[np.searchsorted([0.64, 0.76], number / CLASSES, side="right")]
        path = folder / "videos" / split / f"action number {number}"
        path.mkdir(parents=True)
        for _ in range(num_videos // CLASSES + (number < num_videos % CLASSES)):
            start = rng.randrange(300)
            name = f"{''.join(rng.choices(alphabet, k=11))}_{start:06}_{start + 10:06}"
            (path / f"{name}.mp4").touch()
            rows.append(f"{split},{path.name},{split}/{path.name}/{name}")
    (folder / "split.csv").write_text("\n".join(["split,class_name,video", *rows, ""]))


def nothing(folder: Path) -> dict[str, object]:
    """Do nothing, to measure the cost of the imports alone."""
    return {}


def from_csv(folder: Path) -> dict[str, object]:
    """Load the split file and look up every listed video on the disk."""
    seconds, catalog = timed(lambda: VideoCatalog.from_csv(folder / "split.csv", folder / "videos"))
    return {"videos": len(catalog), "classes": len(catalog.class_names), **seconds}


def from_folders(folder: Path) -> dict[str, object]:
    """Load the class folders."""
    seconds, catalog = timed(lambda: VideoCatalog.from_folders(folder / "videos"))
    return {"videos": len(catalog), "classes": len(catalog.class_names), **seconds}


def episodes(folder: Path) -> dict[str, object]:
    """Draw the indices of episodes of 5 ways, 5 shots and 5 queries per class from the whole catalog."""
    catalog = VideoCatalog.from_folders(folder / "videos")
    seconds, sampler = timed(lambda: EpisodeSampler(catalog.labels, 5, 5, 5, EPISODES, 0, catalog.class_names))
    times = []
    for episode in range(EPISODES):
        start = time.perf_counter()
        sampler[episode]
        times.append(1000 * (time.perf_counter() - start))
    return {
        **{f"sampler_{name}": value for name, value in seconds.items()},
        "episodes": EPISODES,
        "milliseconds_median": round(statistics.median(times), 4),
        "milliseconds_p99": round(statistics.quantiles(times, n=100)[-1], 4),
    }


def resume_tenth(folder: Path) -> dict[str, object]:
    """Find the remaining videos to check, with a tenth of the videos in the log."""
    return _resume(folder, 0.1)


def resume_all(folder: Path) -> dict[str, object]:
    """Find the remaining videos to check, with all but 1000 videos in the log."""
    return _resume(folder, 1.0)


def _resume(folder: Path, share: float) -> dict[str, object]:
    catalog = VideoCatalog.from_folders(folder / "videos")
    log = CheckLog(folder / f"{share}.jsonl", folder / "videos", catalog.videos)
    checked = range(int(share * len(catalog)) - (1000 if share == 1 else 0))
    if not log.path.exists():
        with log.writer() as file:
            for index in checked:
                log.write(file, index, CheckedVideo(300, None, "h264", 340, 256, 0))
        return {}
    seconds, done = timed(lambda: CheckLog(log.path, folder / "videos", catalog.videos).done())
    assert int(done.sum()) == len(checked)
    return {
        "videos_in_log": len(checked),
        "log_megabytes": round(log.path.stat().st_size / 2**20, 1),
        "videos_left": int((~done).sum()),
        **seconds,
    }


def timed(work: Callable[[], Result]) -> tuple[dict[str, float], Result]:
    """Run ``work`` and return wall and CPU seconds, and its result."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    return {name: round(value, 3) for name, value in seconds.items()}, result


MEASUREMENTS = {work.__name__: work for work in (nothing, from_csv, from_folders, episodes, resume_tenth, resume_all)}


def peak_memory_mb() -> float:
    """Return the peak memory of this process. On Linux only ``VmHWM`` excludes the parent's memory."""
    peak = process_bytes("VmHWM")
    return run_folder.peak_memory_mb() if peak is None else peak / 2**20


def _in_process(name: str, folder: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "dmgal.bench.catalog", "--only", name, "--folder", str(folder)]
    result: dict[str, object] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return result


def main() -> None:
    """Make the data set, measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--only", choices=MEASUREMENTS, help="measure this in the process and print it")
    parser.add_argument("--folder", type=Path, help="make the data set here and keep it, or use the existing one")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    if options.only:
        result = MEASUREMENTS[options.only](options.folder)
        print(json.dumps({**result, "peak_memory_mb": round(peak_memory_mb())}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "split.csv").exists():
            make_data_set(folder, options.videos)
        for share in ("resume_tenth", "resume_all"):
            _in_process(share, folder)  # writes the logs
        results = {what: _in_process(what, folder) for what in MEASUREMENTS}
    report = {"hardware": hardware(), "videos": options.videos, "classes": CLASSES, "results": results}
    write_report(report, options.out)


if __name__ == "__main__":
    main()
