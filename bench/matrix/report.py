"""Table of a matrix from its results: one row per method with its accuracy and cost, means over seeds.

Cells that failed, diverged or ran out of memory are rows with their status. With one seed, an accuracy has its 95 %
interval over episodes. With several seeds, it has the range over seeds. Differences to the first row are paired: both
methods have the same episodes, and each episode counts with its mean over seeds.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dmgal.bench.matrix.cell import DIGITS
from dmgal.bench.matrix.experiment import read_experiment
from dmgal.bench.matrix.results import DONE, RESULTS, TEMPORARY, Result, by_kind, check_one_origin, read_results, status
from dmgal.episodes.evaluation import Estimate
from dmgal.errors import DmgalError
from dmgal.recipes.reports.comparison import signed
from dmgal.recipes.run.layers import flat

FOOTNOTE = (
    "Marked methods are on the Pareto front: no other method is at least as accurate at a lower cost. Means are over "
    "seeds. An interval holds for one trained model and these classes."
)


@dataclass(frozen=True, eq=False)
class Row:
    """Results of one method over all seeds."""

    backbone: str
    method: str
    variant: str
    shots: int
    results: tuple[Result, ...]
    """Successful results, one per seed."""
    statuses: tuple[str, ...]
    """Status of every cell of the row."""

    @property
    def name(self) -> str:
        """Name of the method and its variant."""
        return f"{self.method}, {self.variant}" if self.variant else self.method

    def values(self, *keys: str) -> list[float]:
        """Return a number of ``train_info`` by its keys, for each seed that has it."""
        numbers = (_at(result["train_info"], keys) for result in self.results)
        return [number for number in numbers if number is not None]

    def mean(self, *keys: str) -> float | None:
        """Return the mean of a number over seeds, or None."""
        numbers = self.values(*keys)
        return statistics.fmean(numbers) if numbers else None

    def accuracy(self, keys: Sequence[str]) -> str:
        """Return an accuracy with its interval over episodes, or its range over seeds."""
        percents, widths = self.values(*keys, "percent"), self.values(*keys, "half_width")
        if not percents:
            return ""
        if len(percents) == 1:
            return f"{percents[0]:.1f}{f' ± {widths[0]:.1f}' if widths else ''}"
        text = f"{statistics.fmean(percents):.1f} ({min(percents):.1f} to {max(percents):.1f})"
        missing = len(self.statuses) - len(percents)
        return text + (f", {missing} of {len(self.statuses)} seeds without result" if missing else "")


def load(folder: Path) -> list[Result]:
    """Return the results of a benchmark: those of committed code, or else the temporary ones.

    Raises:
        DmgalError: there is none, or they are of several machines or versions of the code.
    """
    found = read_results(folder / RESULTS) or read_results(folder / TEMPORARY)
    if not found:
        raise DmgalError(
            "There are no results to report.",
            received=str(folder),
            expected="the --out folder of dmgal bench",
            remedy="Run dmgal bench first.",
        )
    check_one_origin(found)
    experiment = folder / "experiment.json"
    names = [cell.name for cell in read_experiment(experiment).cells()] if experiment.exists() else []
    return [found[name] for name in [*names, *(name for name in found if name not in names)] if name in found]


def rows_of(results: Iterable[Result]) -> list[Row]:
    """Return the rows of the table."""
    return [
        Row(
            backbone,
            method,
            variant,
            shots,
            results=tuple(one for one in found if status(one) == DONE),
            statuses=tuple(status(one) for one in found),
        )
        for (backbone, method, variant, shots), found in by_kind(results).items()
    ]


def paired(row: Row, first: Row, *keys: str) -> Estimate | None:
    """Return the paired difference to the first row in points, or None if the episodes are not the same."""
    return None if row is first else _paired_of(_accuracies(row.results, keys), _accuracies(first.results, keys))


def _paired_of(ours: Accuracies | None, theirs: Accuracies | None) -> Estimate | None:
    """Return the paired difference in points, or None if one is missing or the episodes are not the same."""
    if ours is None or theirs is None or ours[1] != theirs[1]:
        return None
    return Estimate.of(ours[0] - theirs[0])


Column = Callable[[Row], str]
"""Function that returns the text of a row."""
Accuracies = tuple[torch.Tensor, str]
"""Accuracy of each episode ``(E,)`` and the hash of the episodes."""


def accuracy_table(rows: Sequence[Row]) -> str:
    """Return accuracies and differences in Markdown, of the methods' own heads, of the probe and on other data."""
    results = [result["train_info"] for row in rows for result in row.results]
    shots = sorted({key for info in results for key in info["results"]}, key=int)
    columns = _names(rows)
    for k in shots:
        columns[f"{_shots(k)} %"] = partial(Row.accuracy, keys=("results", k, "accuracy"))
    for k in shots[:1]:
        columns[f"to the first, {_shots(k)}, points"] = partial(_difference, first=rows[0], keys=("results", k))
        columns["reversal, 2-way %"] = partial(_mean, keys=("results", k, "reversal_two_way", "percent"), digits=1)
    for k in shots:
        columns[f"probe, {_shots(k)} %"] = partial(_mean, keys=("results", k, "probe", "percent"), digits=1)
    for name in dict.fromkeys(name for info in results for name in info.get("tests", {})):
        for k in shots:
            keys = "tests", name, k
            columns[f"{name}, {_shots(k)} %"] = partial(Row.accuracy, keys=(*keys, "accuracy"))
            columns[f"{name}, to the first, {_shots(k)}"] = partial(_difference, first=rows[0], keys=keys)
            columns[f"{name}, probe, {_shots(k)} %"] = partial(_mean, keys=(*keys, "probe", "percent"), digits=1)
    columns["status"] = _failed
    return _table(rows, columns)


def other_data_table(rows: Sequence[Row]) -> str:
    """Return accuracies on other data in Markdown, one line per data set and row, with paired differences.

    They are to the first row, and to the first data set if its episodes are the same, as those of data whose videos
    coincide. Columns without a value are left out.
    """
    tests = [result["train_info"].get("tests", {}) for row in rows for result in row.results]
    names = list(dict.fromkeys(name for test in tests for name in test))
    shots = sorted({k for test in tests for of in test.values() for k in of}, key=int)
    lines = []
    for name, row in itertools.product(names, rows):
        line = [name, row.name]
        for k in shots:
            ours, theirs = (_accuracies(row.results, ("tests", data, k, "accuracy")) for data in (name, names[0]))
            across = None if name == names[0] else _paired_of(ours, theirs)
            keys = ("tests", name, k)
            line += [row.accuracy((*keys, "accuracy")), _difference(row, rows[0], keys), _points(across)]
        lines.append(line)
    if not lines:
        return ""
    titles = itertools.chain(*((f"{_shots(k)} %", f"to {rows[0].name}", f"to {names[0]}") for k in shots))
    columns = zip(["tested on", "method", *titles], *lines, strict=True)
    header, *shown = zip(*(column for column in columns if any(column[1:])), strict=True)
    return markdown(header, shown)


def ablation_table(rows: Sequence[Row]) -> str:
    """Return the paired differences of variants to their method without one, in Markdown. Empty without variants.

    After each difference with its interval over episodes comes its range over seeds.
    """
    full = {(row.backbone, row.method, row.shots): row for row in rows if not row.variant and row.results}
    pairs = {row: full[key] for row in rows if row.variant and (key := (row.backbone, row.method, row.shots)) in full}
    shots = sorted({key for row in pairs for one in row.results for key in one["train_info"]["results"]}, key=int)
    columns: dict[str, Column] = _names(rows)
    for k in shots:
        columns[f"{_shots(k)} %"] = partial(Row.accuracy, keys=("results", k, "accuracy"))
        keys = "results", k, "accuracy"
        columns[f"to the full method, {_shots(k)}, points"] = partial(_by_seed, full=pairs, keys=keys)
    columns["trained"] = partial(_mean, keys=("parameters", "trained"))
    columns["status"] = _failed
    return _table(list(pairs), columns) if pairs else ""


def _by_seed(row: Row, full: Mapping[Row, Row], keys: Sequence[str]) -> str:
    """Return the paired difference to a row's full method, and the smallest and largest one of the seeds of both."""
    change = paired(row, full[row], *keys)
    if change is None:
        return ""
    sides = (row, full[row])
    by_seed = [{_seed(one): _at(one["train_info"], (*keys, "percent")) for one in side.results} for side in sides]
    changes = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0] if seed in by_seed[1]]
    spread = f" ({min(changes):+.1f} to {max(changes):+.1f})" if len(changes) > 1 else ""
    return f"{signed(change)}{spread}"


def _seed(result: Result) -> int:
    seed: int = result["run_info"]["cell"]["seed"]
    return seed


def _failed(row: Row) -> str:
    return "" if row.results else ", ".join(sorted(set(row.statuses)))


def cost_table(rows: Sequence[Row]) -> str:
    """Return parameters, memory, time, operations and file sizes in Markdown."""
    columns = _names(rows)
    columns |= {
        "trained": partial(_mean, keys=("parameters", "trained")),
        "peak MB": partial(_mean, keys=("memory_mb", "max")),
        "p99 MB": partial(_mean, keys=("memory_mb", "p99")),
        "s/step": partial(_mean, keys=("step_seconds", "median"), digits=3),
        "videos/s": partial(_mean, keys=("videos_per_second", "median"), digits=1),
        "GFLOP/task": partial(_mean, keys=("gigaflops", "task"), digits=2),
        "file, KB": partial(_mean, keys=("file_size",), factor=1 / 1024),
    }
    return _table([row for row in rows if row.results], columns)


def _names(rows: Sequence[Row]) -> dict[str, Column]:
    """Return the columns that name a row."""
    columns: dict[str, Column] = {}
    if len({row.backbone for row in rows}) > 1:
        columns["backbone"] = lambda row: row.backbone
    columns["method"] = lambda row: row.name
    if len({row.shots for row in rows if not is_untrained(row)}) > 1:
        columns["shots in training"] = lambda row: str(row.shots)
    return columns


def labels(rows: Sequence[Row]) -> dict[Row, str]:
    """Return the name of each row, with its backbone and shots if they differ between rows."""
    columns = _names(rows).values()
    return {row: ", ".join(column(row) for column in columns) for row in rows}


def _table(rows: Sequence[Row], columns: Mapping[str, Column]) -> str:
    """Return a Markdown table. Columns without any text are omitted."""
    columns = {name: column for name, column in columns.items() if any(column(row) for row in rows)}
    return markdown(list(columns), [[column(row) for column in columns.values()] for row in rows])


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def is_untrained(row: Row) -> bool:
    """Return True if nothing is trained, so that the shots in training do not matter."""
    return bool(row.results) and row.mean("steps") == 0


def as_csv(results: Sequence[Result]) -> str:
    """Return all numbers of all cells as CSV, one line per cell."""
    lines = []
    for result in results:
        info, run_info = result["train_info"], result["run_info"]
        numbers = {key: value for key, value in flat(info) if isinstance(value, int | float | str) or value is None}
        numbers = {key: value for key, value in numbers.items() if not key.endswith((".correct", "episodes_hash"))}
        lines.append({**run_info["cell"], **numbers, "error": run_info["error_msg"], "date": run_info["created_at"]})
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def as_page(results: Sequence[Result], title: str) -> str:
    """Return the report as Markdown: conditions, table, figures, and the messages of cells without success."""
    info, meta = results[0]["run_info"], results[0]["meta_info"]
    rows = rows_of(results)
    failed = [f"- {row.name}: {', '.join(row.statuses)}" for row in rows if len(row.results) < len(row.statuses)]
    hardware, versions = meta["hardware"], meta["versions"]
    seeds = sorted({result["run_info"]["cell"]["seed"] for result in results})
    first, last = (pick(result["run_info"]["created_at"][:10] for result in results) for pick in (min, max))
    conditions = [
        f"{info['test']['episodes']:,} episodes of novel classes, training seeds {', '.join(map(str, seeds))}.",
        f"{hardware['gpu'] or hardware['processor']}, {hardware['threads']} thread(s) of {hardware['cores']} cores.",
        f"dmgal {versions['dmgal']} ({meta['git_revision'] or 'no commit'}), torch {versions['torch']}.",
        f"{first if first == last else f'{first} to {last}'}.",
    ]
    parts = [
        f"# {title}",
        " ".join(conditions),
        accuracy_table(rows).rstrip(),
        *([f"What each part is worth:\n\n{ablations.rstrip()}"] if (ablations := ablation_table(rows)) else []),
        cost_table(rows).rstrip(),
        *(["Without success:\n\n" + "\n".join(failed)] if failed else []),
        "![Accuracy against cost](figure_light.svg)",
        FOOTNOTE,
        "![Validation accuracy against training episodes](learning_light.svg)",
        "![Seconds and operations by part](breakdown_light.svg)",
    ]
    return "\n\n".join(parts) + "\n"


def _accuracies(results: Sequence[Result], keys: Sequence[str]) -> Accuracies | None:
    """Return the mean accuracy of each episode over seeds ``(E,)``, and the hash of the episodes."""
    found = [_at(result["train_info"], keys) for result in results]
    if not found or any(not isinstance(one, Mapping) or "correct" not in one for one in found):
        return None
    hashes = {one["episodes_hash"] for one in found}
    counts = torch.tensor([[DIGITS.index(c) for c in one["correct"]] for one in found], dtype=torch.float64)
    return (counts.mean(dim=0) / found[0]["queries"], hashes.pop()) if len(hashes) == 1 else None


def _difference(row: Row, first: Row, keys: Sequence[str]) -> str:
    return _points(paired(row, first, *keys, "accuracy"))


def _points(change: Estimate | None) -> str:
    return "" if change is None else signed(change)


def _mean(row: Row, keys: Sequence[str], digits: int = 0, factor: float = 1.0) -> str:
    value = row.mean(*keys)
    return "" if value is None else f"{factor * value:,.{digits}f}"


def _at(tree: object, keys: Sequence[str]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _shots(number: str) -> str:
    return "1 shot" if number == "1" else f"{number} shots"
