"""Short runs of the benchmarks that measure speed-ups, and a table of these next to the committed results.

    python -m dmgal.bench.smoke

Each benchmark runs as its command at a small size, two at a time, in processes of one thread. The table shows how many
times as fast as the plain form or the authors' form ours is, and marks a ratio below half of that in ``bench/results``.
A slow machine or slow code never changes the exit code. It is 1 if a benchmark crashes, and the error is printed.

Left out:

- ``training``, ``memory``, ``adapters``, ``gallery`` and ``gpu`` need ViT-B/16, where one step takes many seconds.
- ``quantized`` measures accuracy first, and ``harness`` trains.
- ``step_cost`` counts operations. Its time of tasks in one batch is close to that of tasks apart.
- ``cheap_steps``: remembered side networks take a fixed time, so their ratio holds at the full size only.
- ``catalog``, ``live`` and the others report no ratio of speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
SHARE = 0.5
"""Share of the committed ratio below which a ratio is marked."""
MARK = "slower than expected"


class Ratio(NamedTuple):
    """A ratio in a report: what it compares, its keys, and whether it is our time over that of the other form."""

    compared: str
    keys: tuple[str | int, ...]
    inverse: bool = False

    def of(self, report: Any) -> float:
        """Return how many times as fast as the other form ours is."""
        for key in self.keys:
            report = report[key]
        median = float(report["median"])
        return 1 / median if self.inverse else median


class Bench(NamedTuple):
    """A benchmark: arguments of Python that run it at a small size, and its ratios. The path of its report follows."""

    arguments: str
    ratios: tuple[Ratio, ...]


BENCHES = {
    "evaluation": Bench(
        "-m dmgal.bench.evaluation --only smga-1 --episodes 500 --videos 120 --plain-episodes 10 --rounds 1"
        " --no-pieces --no-moving-shapes --out",
        (Ratio("10 encodings per task / stored states", ("tiny_clip", 0, "times_plain")),),
    ),
    "kernels": Bench(
        "-m dmgal.bench.kernels --only c_mga_float32 s_mga_float32 m2acl_pairs --rounds 2 --no-memory --out",
        (
            Ratio("C-MGA: authors / ours", ("kernels", "c_mga_float32", "speedup")),
            Ratio("S-MGA: authors / ours", ("kernels", "s_mga_float32", "speedup")),
            Ratio("M2ACL contrast: loops / ours", ("kernels", "m2acl_pairs", "speedup")),
        ),
    ),
    "cheap_steps": Bench(
        "-m dmgal.bench.cheap_steps --frames 2 --pixels 32 --rounds 1 --out",
        (
            Ratio("Smga in all blocks / side network", ("results", "side network", "time_ratio"), inverse=True),
            Ratio("Smga in all / in late blocks", ("results", "late Smga", "time_ratio"), inverse=True),
        ),
    ),
    "store": Bench(
        "-m dmgal.bench.store --clips 4 --rounds 3 --out",
        (
            Ratio("decord / stored test clips", ("times_decord", "store_test_clips")),
            Ratio("decord / stored training JPEGs", ("times_decord", "store_training_jpegs")),
        ),
    ),
    "decode": Bench(
        "-m dmgal.bench.decode --contents 1 --rounds 5 --no-wrong-frames --out",
        (
            Ratio("plain decoding / ours, GOP 12", ("speed", "GOP 12", "times_as_long_as_ours", "plain")),
            Ratio("plain decoding / ours, GOP 250", ("speed", "GOP 250", "times_as_long_as_ours", "plain")),
        ),
    ),
}
"""Benchmarks by name, which is also that of the committed report. The longest come first."""


def run(folder: Path, name: str, bench: Bench) -> str:
    """Run a benchmark, which writes its report into a folder, and return its error, or "" if it succeeds."""
    words = [sys.executable, *bench.arguments.split(), str(folder / f"{name}.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return f"{process.stderr}{name}: exit code {process.returncode}" if process.returncode else ""


def table(now: Mapping[str, Any], committed: Mapping[str, Any], benches: Mapping[str, Bench]) -> list[str]:
    """Return the lines of the table, from the reports of now and the committed ones by benchmark."""
    lines = [f"{'bench':<12} {'speed-up':<38} {'now':>7} {'committed':>9}"]
    for name, report in now.items():
        for ratio in benches[name].ratios:
            found, expected = ratio.of(report), ratio.of(committed[name])
            mark = f"  {MARK}" if found < SHARE * expected else ""
            lines.append(f"{name:<12} {ratio.compared:<38} {found:>7.2f} {expected:>9.2f}{mark}")
    return lines


def read_reports(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return reports by benchmark."""
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def main(benches: Mapping[str, Bench] = BENCHES, results: Path = RESULTS) -> int:
    """Run benchmarks and print the table. Return the exit code, 1 if one of them crashed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        with ThreadPoolExecutor(2) as threads:
            errors = list(threads.map(partial(run, Path(name)), benches, benches.values()))
        succeeded = [bench for bench, error in zip(benches, errors, strict=True) if not error]
        print(*table(read_reports(Path(name), succeeded), read_reports(results, succeeded), benches), sep="\n")
    for error in filter(None, errors):
        print(error, file=sys.stderr)
    print(f"{len(succeeded)} of {len(benches)} benchmarks in {time.monotonic() - start:.0f} s")
    return 1 if any(errors) else 0


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())
