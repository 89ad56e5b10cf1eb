"""DMGAL-Adapter against other adapters on moving shapes: same head, same budget, parameters within 20 %, three seeds.

    python -m dmgal.bench.adapter_comparison --jobs 2

Each method's learning rate is the best of ``RATES`` on the validation classes of data seed 0; the novel classes are
looked at once, at the end. Runs that are finished are not repeated. Writes ``bench/results/adapter_comparison.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from dmgal.episodes.moving_shapes import generate_moving_shapes

RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
METHODS = {
    "dmgal_adapter": [],
    "st_adapter": ["--adapter.bottleneck", "30"],
    "aim": ["--adapter.bottleneck", "10"],
    "d2st": ["--adapter.bottleneck", "16"],
    "lora": [],
    "bitfit": [],
}
"""By recipe: options that bring its parameters near those of DMGAL-Adapter; BitFit has fewer and cannot have more."""


@dataclass(frozen=True)
class AdapterComparison:
    """Options of the command."""

    work: Path = Path("adapter_comparison")
    """Folder for videos and runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the data, the split into classes included, and of the training."""
    episodes: int = 2000
    jobs: int = 1
    """Trainings at the same time, each with its share of the cores."""
    out: Path = Path(__file__).parent / "results" / "adapter_comparison.json"


@dataclass(frozen=True)
class Training:
    """One run of ``dmgal train``."""

    method: str
    rate: float
    seed: int

    def folder(self, work: Path) -> Path:
        return work / "runs" / f"seed{self.seed}" / f"{self.method}_{self.rate:g}"


def train(training: Training, options: AdapterComparison) -> None:
    """In a process of its own; resumes what was begun."""
    folder = training.folder(options.work)
    words = ["demo", f"method/{training.method}", "data/moving_shapes", *METHODS[training.method]]
    words += ["--data.root", str(data_folder(options, training.seed)), "--data.seed", str(training.seed)]
    words += ["--train.seed", str(training.seed), "--train.learning-rate", str(training.rate), "--quiet"]
    words += ["--out", str(folder), *(["--resume"] if (folder / "recipe.yaml").exists() else [])]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-m", "dmgal.recipes.train", *words], env=environ, check=True)
    print(f"{training.method}, rate {training.rate:g}, seed {training.seed}: {validation(folder):.1f} %", flush=True)


def train_all(trainings: Iterable[Training], options: AdapterComparison) -> None:
    """Those that are not finished."""
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda training: train(training, options), trainings))


def compare(trainings: list[Training], options: AdapterComparison) -> dict[str, Any]:
    """Of one seed: what ``dmgal compare`` finds on the novel classes, differences to the first."""
    out = options.work / f"seed{trainings[0].seed}.json"
    words = ["compare", *(str(training.folder(options.work)) for training in trainings), "--quiet"]
    words += ["--episodes", str(options.episodes), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "dmgal", *words], check=True)
    return {"seed": trainings[0].seed, **json.loads(out.read_text())}


def validation(folder: Path) -> float:
    """The best accuracy on validation classes, in percent."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return max(entry["validation_accuracy"] for entry in entries if "validation_accuracy" in entry)


def data_folder(options: AdapterComparison, seed: int) -> Path:
    """The videos of a seed, made where they are missing."""
    return options.work / f"moving_shapes_seed{seed}"


def main(argv: list[str] | None = None) -> None:
    """Choose rates, train, compare, write."""
    options = tyro.cli(AdapterComparison, args=argv, description=__doc__)
    for seed in options.seeds:
        generate_moving_shapes(data_folder(options, seed), seed=seed)
    train_all([Training(method, rate, options.seeds[0]) for method in METHODS for rate in RATES], options)
    searched = {
        method: {rate: validation(Training(method, rate, options.seeds[0]).folder(options.work)) for rate in RATES}
        for method in METHODS
    }
    best = {method: max(found, key=found.__getitem__) for method, found in searched.items()}
    train_all([Training(m, best[m], seed) for seed in options.seeds[1:] for m in METHODS], options)
    comparisons = [compare([Training(m, best[m], seed) for m in METHODS], options) for seed in options.seeds]
    report: dict[str, Any] = {
        "environment": comparisons[0]["environment"],
        "validation_by_rate": {
            method: {f"{rate:g}": round(v, 2) for rate, v in f.items()} for method, f in searched.items()
        },
        "summary": summary(comparisons),
        "comparisons": comparisons,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")


def summary(comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """Per method: accuracy, and the paired difference to DMGAL-Adapter, mean and range over seeds."""
    result: dict[str, Any] = {}
    for place, method in enumerate(METHODS):
        rows = [comparison["rows"][place] for comparison in comparisons]
        result[method] = {
            "trained_parameters": rows[0]["trained_parameters"],
            "accuracy": _spread([row["results"]["accuracy"]["percent"] for row in rows]),
            "reversal_two_way": _spread([row["results"]["reversal_two_way"]["percent"] for row in rows]),
        }
        if place:
            result[method]["difference_to_dmgal_adapter"] = _spread([r["difference_to_first"]["points"] for r in rows])
            result[method]["half_widths"] = [row["difference_to_first"]["half_width"] for row in rows]
    return result


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(sum(values) / len(values), 2), "lowest": min(values), "highest": max(values)}


if __name__ == "__main__":
    main()
