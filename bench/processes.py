"""Differences between trainings on 1, 2 and 4 processes: losses of 50 steps in float64 and float32.

    python -m dmgal.bench.processes

DMGAL-Adapter on tiny-clip, moving shapes, four tasks a step; each run is `torchrun` on CPUs. The same tasks and the
same dropout on any number of processes, so all that differs is the order in which gradients are added, and what the
optimizer makes of that. Writes ``bench/results/processes.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmgal.bench.measuring import hardware, write_report
from dmgal.videos.moving_shapes.generate import generate_moving_shapes

PROCESSES = (1, 2, 4)
AT = (1, 5, 20, 50)
WANTED = {"float64": {"steps": 20, "at_most": 1e-9}, "float32": {"steps": 5, "at_most": 1e-5}}


@dataclass(frozen=True)
class Processes:
    """Options of the command."""

    work: Path = Path("processes")
    """Folder for videos and runs. Existing runs are not repeated."""
    steps: int = 50
    """Training steps."""
    clips_per_class: int = 6
    """Clips per class of the generated videos."""
    out: Path = Path(__file__).parent / "results" / "processes.json"
    """File for the results."""


def losses(options: Processes, precision: str, processes: int) -> list[float]:
    """Return the loss of every step of a training."""
    folder = options.work / f"{precision}_{processes}"
    words = ["-m", "dmgal.recipes.train", "method/dmgal_adapter", "data/moving_shapes", "--quiet", "--resume"]
    words += ["--data.root", str(options.work / "videos"), "--data.split-file", str(options.work / "videos/split.csv")]
    words += ["--data.generate", "no", "--train.precision", precision, "--train.tasks-per-step", "4"]
    words += ["--train.steps", str(options.steps), "--train.validation-episodes", "100", "--out", str(folder)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, *(launcher if processes > 1 else []), *words], env=environment, check=True)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def differences(options: Processes, precision: str) -> dict[str, dict[str, float]]:
    """Return the largest difference from one process up to several steps, by number of processes."""
    one, *others = (losses(options, precision, processes) for processes in PROCESSES)
    return {
        f"{processes}_processes": {
            f"up_to_step_{step}": max(abs(a - b) for a, b in zip(one[:step], other[:step], strict=True))
            for step in AT
            if step <= options.steps
        }
        for processes, other in zip(PROCESSES[1:], others, strict=True)
    }


def main(argv: list[str] | None = None) -> None:
    """Train and write the report."""
    options = tyro.cli(Processes, args=argv, description=__doc__)
    generate_moving_shapes(options.work / "videos", clips_per_class=options.clips_per_class)
    report: dict[str, object] = {
        "what": "largest difference of training losses to one process",
        "hardware": hardware(),
        "steps": options.steps,
        "differences": {precision: differences(options, precision) for precision in WANTED},
        "wanted": WANTED,
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
