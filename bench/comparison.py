"""Adapters, or whole methods, trained on moving shapes under one budget and compared on the same episodes.

    python -m dmgal.bench.comparison adapters --jobs 2     same head, parameters within 20 %
    python -m dmgal.bench.comparison methods --jobs 2      trained with one shot, tested with one and five
    python -m dmgal.bench.comparison demo                  the methods of ``dmgal demo``, as a user would run it

Writes ``bench/results/adapter_comparison.json``, ``method_comparison.json`` or ``demo.json``. Every training runs in
its own process.

A comparison lists methods with options and learning rates. The first data seed tries all rates, the other seeds only
the best ``tried_again`` of these. Each seed uses the rate that is best on its validation classes. The novel classes are
evaluated once, at the end. Finished trainings are not repeated. The choices of the demo were made on the validation
classes of data seed 0. Videos and class splits of its other seeds are generated for the first time here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import tyro
import yaml

from dmgal.bench.measuring import write_report
from dmgal.videos.moving_shapes.generate import generate_moving_shapes


@dataclass(frozen=True)
class Rate:
    """Learning rates of the added parameters, and of the backbone if it is trained."""

    added: float
    backbone: float = 1e-4

    def __str__(self) -> str:
        return f"{self.added:g}_{self.backbone:g}"


@dataclass(frozen=True)
class Training:
    """Run of ``dmgal train`` on the moving shapes of a seed, which is also the seed of the training."""

    method: str
    rate: Rate
    seed: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workshop:
    """Folder of the runs, and number of parallel trainings, each with its share of the cores."""

    folder: Path
    jobs: int = 1

    def run(self, training: Training) -> Path:
        """Return the run folder of a training."""
        return self.folder / "runs" / f"seed{training.seed}" / f"{training.method}_{training.rate}"

    def data(self, seed: int) -> Path:
        """Return the video folder of a seed."""
        return self.folder / f"moving_shapes_seed{seed}"

    def make_data(self, seeds: Iterable[int]) -> None:
        """Generate missing videos of all seeds."""
        for seed in seeds:
            generate_moving_shapes(self.data(seed), seed=seed)

    def train(self, trainings: Iterable[Training]) -> None:
        """Run the unfinished trainings, resuming those that were started."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._train, trainings))

    def is_finished(self, training: Training) -> bool:
        """Return True if the last step of the recipe was validated."""
        recipe = self.run(training) / "recipe.yaml"
        return recipe.exists() and yaml.safe_load(recipe.read_text())["train"]["steps"] in self._validations(training)

    def validation(self, training: Training) -> float:
        """Return the best accuracy on validation classes, in percent."""
        return max(self._validations(training).values())

    def compare(self, trainings: Sequence[Training], episodes: int, shots: int = 1) -> dict[str, Any]:
        """Return the result of ``dmgal compare`` on the novel classes, with differences to the first training."""
        seed = trainings[0].seed
        out = self.folder / f"seed{seed}_{shots}shot.json"
        words = ["compare", *(str(self.run(training)) for training in trainings), "--quiet", "--no-probe"]
        words += ["--episodes", str(episodes), "--shots", str(shots), "--out", str(out)]
        subprocess.run([sys.executable, "-m", "dmgal", *words], check=True)
        return {"seed": seed, "shots": shots, **json.loads(out.read_text())}

    def _validations(self, training: Training) -> dict[int, float]:
        """Return the accuracy on validation classes by step."""
        log = self.run(training) / "log.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return {entry["step"]: entry["validation_accuracy"] for entry in entries if "validation_accuracy" in entry}

    def _train(self, training: Training) -> None:
        if self.is_finished(training):
            return
        folder = self.run(training)
        words = ["demo", f"method/{training.method}", "data/moving_shapes", *training.options]
        words += ["--data.root", str(self.data(training.seed)), "--data.seed", str(training.seed)]
        words += ["--train.seed", str(training.seed), "--train.learning-rate", str(training.rate.added)]
        words += ["--train.backbone-learning-rate", str(training.rate.backbone), "--quiet", "--out", str(folder)]
        words += ["--resume"] if (folder / "recipe.yaml").exists() else []
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-m", "dmgal.recipes.train", *words], env=environment, check=True)
        rate = f"rates {training.rate.added:g} and {training.rate.backbone:g}"
        print(f"{training.method}, {rate}, seed {training.seed}: {self.validation(training):.1f} %", flush=True)


@dataclass(frozen=True)
class Comparison:
    """Methods by recipe with their options, and the candidate rates of each."""

    options: Mapping[str, tuple[str, ...]]
    rates: Mapping[str, tuple[Rate, ...]]
    tried_again: int = 2
    """Number of the first seed's best rates that the other seeds try."""

    def run(
        self, workshop: Workshop, seeds: Sequence[int], episodes: int, shots: Sequence[int] = (1,)
    ) -> dict[str, object]:
        """Choose rates, train, compare, and return a JSON-ready report."""
        workshop.make_data(seeds)
        found = self._validate(workshop, seeds[0], self.rates)
        best = {m: tuple(sorted(rates, key=rates.__getitem__)[-self.tried_again :]) for m, rates in found.items()}
        validation = {seeds[0]: found} | {seed: self._validate(workshop, seed, best) for seed in seeds[1:]}
        chosen = {
            seed: [self._training(m, max(rates, key=rates.__getitem__), seed) for m, rates in found.items()]
            for seed, found in validation.items()
        }
        tables = [workshop.compare(chosen[seed], episodes, k) for k in shots for seed in seeds]
        return {
            "environment": {key: value for key, value in tables[0]["environment"].items() if key != "command"},
            "validation_by_seed_method_and_rate": {
                seed: {m: {str(r): round(v, 2) for r, v in rates.items()} for m, rates in found.items()}
                for seed, found in validation.items()
            },
            "summary": {f"{k}-shot": summary([table for table in tables if table["shots"] == k]) for k in shots},
            "tables": [{key: table[key] for key in ("seed", "shots", "protocol", "rows")} for table in tables],
        }

    def _validate(
        self, workshop: Workshop, seed: int, rates: Mapping[str, tuple[Rate, ...]]
    ) -> dict[str, dict[Rate, float]]:
        """Return validation accuracy of a seed by method and rate, after training those that are not finished."""
        trainings = {m: {rate: self._training(m, rate, seed) for rate in rates[m]} for m in self.options}
        workshop.train(training for of_method in trainings.values() for training in of_method.values())
        return {m: {rate: workshop.validation(t) for rate, t in found.items()} for m, found in trainings.items()}

    def _training(self, method: str, rate: Rate, seed: int) -> Training:
        return Training(method, rate, seed, self.options[method])


class MethodSummary(TypedDict):
    """Mean and range over seeds of the numbers of a method, and the half-width of its difference for each seed."""

    trained_parameters: int
    accuracy: dict[str, float]
    reversal_two_way: dict[str, float]
    difference_to_first: dict[str, float]
    half_widths: list[float]


def summary(tables: list[dict[str, Any]]) -> dict[str, MethodSummary]:
    """Return mean and range over seeds of accuracy and of the paired difference to the first, by method."""
    result: dict[str, MethodSummary] = {}
    for place, row in enumerate(tables[0]["rows"]):
        rows = [table["rows"][place] for table in tables]
        method = row["run"].rpartition("_")[0].rpartition("_")[0]
        result[method] = {
            "trained_parameters": row["trained_parameters"],
            "accuracy": _spread([row["results"]["accuracy"]["percent"] for row in rows]),
            "reversal_two_way": _spread([row["results"]["reversal_two_way"]["percent"] for row in rows]),
            "difference_to_first": _spread([row["difference_to_first"]["points"] for row in rows]),
            "half_widths": [row["difference_to_first"]["half_width"] for row in rows],
        }
    return result


def run_demo(seed: int, folder: Path) -> dict[str, object]:
    """Run ``dmgal demo`` and return its numbers."""
    command = [sys.executable, "-m", "dmgal", "demo", "--out", str(folder), "--seed", str(seed), "--quiet"]
    subprocess.run(command, check=True)
    numbers: dict[str, object] = json.loads((folder / "results.json").read_text())
    return numbers


def demo_summary(demos: list[dict[str, Any]]) -> dict[str, object]:
    """Return mean and range over data seeds of every table entry, by method."""
    result: dict[str, object] = {}
    for place, row in enumerate(demos[0]["rows"]):
        rows = [demo["rows"][place] for demo in demos]
        differences = [row["difference_to_first"] for row in rows]
        result[row["run"]] = {
            "accuracy": _spread([row["results"]["accuracy"]["percent"] for row in rows]),
            "difference_to_frozen": _spread([difference["points"] for difference in differences]),
            "lowest_end_of_difference_interval": min(d["points"] - d["half_width"] for d in differences),
            "reversal_two_way": _spread([row["results"]["reversal_two_way"]["percent"] for row in rows]),
            "reversal_four_way": _spread([row["results"]["reversal_four_way"]["percent"] for row in rows]),
            "share_of_visual_tower_percent": round(100 * row["trained_parameters"] / row["visual_tower_parameters"], 2),
        }
    return result


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(sum(values) / len(values), 2), "lowest": min(values), "highest": max(values)}


ADAPTER_OPTIONS: dict[str, tuple[str, ...]] = {
    "dmgal_adapter": (),
    "st_adapter": ("--adapter.bottleneck", "30"),
    "aim": ("--adapter.bottleneck", "10"),
    "d2st": ("--adapter.bottleneck", "16"),
    "lora": (),
    "bitfit": (),
}
"""Options by recipe that match the parameter count of DMGAL-Adapter. BitFit has fewer and cannot have more."""
ADAPTER_RATES = tuple(Rate(rate) for rate in (2e-3, 4e-3, 8e-3, 1.6e-2))

FULLY_TRAINED = ("dmgal_ft", "m2acl", "molo", "trx", "strm", "hyrsm", "otam", "bi_mhm", "frame_aligned")
STUCK = ("sact", "prototype")
"""Methods below 40 % on validation classes with the usual two pairs of rates: smaller rates are tried as well."""
METHOD_RATES = {
    "dmgal_adapter": (Rate(4e-3),),  # chosen in the same way by the comparison of adapters
    **dict.fromkeys(FULLY_TRAINED, (Rate(1e-3, 5e-4), Rate(3e-3, 5e-4))),
    **dict.fromkeys(STUCK, (Rate(1e-3, 5e-4), Rate(3e-3, 5e-4), Rate(3e-4, 1e-4), Rate(1e-4, 1e-4))),
}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    kind: tyro.conf.Positional[Literal["adapters", "methods", "demo"]]
    work: Path = Path("comparison")
    """Folder for videos and runs, with a subfolder per kind."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the data, including the split into classes, and of the training."""
    episodes: int = 2000
    """Number of test episodes. The demo has its own, and trains one method at a time."""
    jobs: int = 1
    """Number of parallel trainings."""
    out: Path = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    """Train, compare and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.kind == "demo":
        demos = [run_demo(seed, options.work / "demo" / f"seed{seed}") for seed in options.seeds]
        report: dict[str, object] = {"seeds": list(options.seeds), "summary": demo_summary(demos), "demos": demos}
        write_report(report, options.out / "demo.json", show=False)
        print(json.dumps(report["summary"], indent=2))
        return
    workshop = Workshop(options.work / options.kind, options.jobs)
    shots: tuple[int, ...] = (1,)
    if options.kind == "adapters":
        comparison = Comparison(ADAPTER_OPTIONS, dict.fromkeys(ADAPTER_OPTIONS, ADAPTER_RATES))
    else:
        comparison = Comparison(dict.fromkeys(METHOD_RATES, ("--queries", "2")), METHOD_RATES, tried_again=1)
        shots = (1, 5)
    report = comparison.run(workshop, options.seeds, options.episodes, shots=shots)
    write_report(report, options.out / f"{options.kind.removesuffix('s')}_comparison.json", show=False)


if __name__ == "__main__":
    main()
