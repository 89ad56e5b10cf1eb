"""Rows of a reproduction: our accuracy over several trainings, its cost, and what others have published.

One row is a method on a backbone, trained and tested with the same number of shots. The interval is over the seeds of
the trainings (Student's for a few), so it holds for the method and not for one trained model. Published numbers and
their sources are in ``published.yaml``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from dmgal.bench.matrix.experiment import cell_name
from dmgal.bench.matrix.report import Row, is_untrained, markdown, rows_of
from dmgal.bench.matrix.results import Result, check_one_origin, read_results
from dmgal.bench.matrix.runner import Runner, duration
from dmgal.episodes.evaluation.statistics import interval_of_mean
from dmgal.files import parse_json, parse_yaml, read_json, read_mapping, read_text, write_text
from dmgal.recipes.run.folder import json_text

PUBLISHED = Path(__file__).with_name("published.yaml")
CLIP, RESNET = "open_clip:ViT-B-16/openai", "hf:microsoft/resnet-50"
ADAPTERS = ("frozen", "lora", "st_adapter", "d2st", "smga", "dmgal_adapter")
"""Methods that are reproduced by default on any backbone."""
METHODS = {
    CLIP: (*ADAPTERS, "clip_fsar"),
    RESNET: ("frozen", "otam", "trx", "strm", "hyrsm", "molo", "dmgal_ft"),
}
"""Methods that are reproduced by default on the backbones of the papers."""
BACKBONES = {CLIP: "CLIP ViT-B/16", RESNET: "ResNet-50"}
"""Names of the papers' backbones in tables."""
SHOWN = ("frozen", "dmgal_adapter")
"""Methods that the documentation lists for every data set, also before there is a result or a published number."""
TITLES = {
    "ssv2_small": "SSv2-Small",
    "ssv2_full": "SSv2-Full",
    "kinetics100": "Kinetics-100",
    "hmdb51": "HMDB51",
    "ucf101": "UCF101",
}
"""Names of the standard data sets in tables."""
SHOTS = ("1", "5")


@dataclass(frozen=True)
class Published:
    """Accuracies that others state for a method, in percent by data set and shots."""

    backbone: str
    source: str
    percent: Mapping[str, Mapping[str, float]]


class RecordRow(TypedDict):
    """Row of a record: accuracy and cost of a method with some shots, over the seeds of its trainings."""

    method: str
    backbone: str
    shots: str
    percent: float | None
    interval_over_seeds: list[float] | None
    by_seed: dict[str, float]
    half_widths_over_episodes: list[float]
    statuses: list[str]
    steps: float | None
    trained_parameters: float | None
    peak_mb: float | None
    seconds: float
    runs: list[str]


class Record(TypedDict):
    """Content of reproduction.json. Its ``meta`` is the origin of the results."""

    data: str
    commands: list[str]
    dates: list[str]
    episodes: int
    videos: Mapping[str, object]
    rows: list[RecordRow]
    meta: Mapping[str, Any]


def read_published(path: Path = PUBLISHED) -> dict[str, Published]:
    """Return the published accuracies by method. Raise a DmgalError if the file cannot be read."""
    tree = read_mapping(path, "The published accuracies cannot be read.", "Install dmgal again.", parse_yaml)
    return {method: Published(**entry) for method, entry in tree.items()}


def write_record(runner: Runner, name: str, summary: Mapping[str, object], command: str) -> str:
    """Write reproduction.json and reproduction.md, also with the rows of earlier commands, and return the page.

    Args:
        runner: the trainings, whose rows come first, and the folder.
        name: name of the data set.
        summary: content of summary.json of the prepared videos.
        command: command to store in the record.
    """
    out, results = runner.folder, read_results(runner.results_folder)
    cells = [cell.name for cell in runner.experiment.cells()]
    check_one_origin(results)
    path = out / "reproduction.json"
    ordered = [results[cell] for cell in dict.fromkeys([*cells, *results]) if cell in results]
    videos = {"found": summary["videos"], "missing": summary["missing"], "bad": summary.get("bad", 0)}
    earlier = read_json(path).get("commands", []) if path.exists() else []
    record = reproduction_as_json(ordered, name, list(dict.fromkeys([*earlier, command])), videos)
    write_text(path, json_text(record))
    write_text(out / "reproduction.md", page := as_page(record))
    return page


def read_record(path: Path) -> Record:
    """Return a record of this repository."""
    record: Record = parse_json(read_text(path))
    return record


def reproduction_as_json(
    results: Sequence[Result], data: str, commands: Sequence[str], videos: Mapping[str, object]
) -> Record:
    """Return the record of a reproduction.

    Args:
        results: of all its cells.
        data: name of the data set.
        commands: commands that repeat it.
        videos: numbers of found, missing and bad videos.
    """
    info, dates = results[0]["run_info"], sorted(one["run_info"]["created_at"][:10] for one in results)
    return {
        "data": data,
        "commands": list(commands),
        "dates": [dates[0], dates[-1]],
        "episodes": info["test"]["episodes"],
        "videos": dict(videos),
        "rows": [one for row in rows_of(results) for one in _rows(row, info["test"]["shots"])],
        "meta": results[0]["meta_info"],
    }


def _rows(row: Row, test_shots: Iterable[int]) -> list[RecordRow]:
    """Return a row per number of shots: all of them if nothing was trained, else that of the training."""
    shots = test_shots if is_untrained(row) else [row.shots]
    return [_row(row, str(number)) for number in shots]


def _row(row: Row, shots: str) -> RecordRow:
    cells = [one["run_info"]["cell"] for one in row.results]
    keys = ("results", shots, "accuracy")
    percents = row.values(*keys, "percent")
    interval = interval_of_mean(np.array(percents)) if len(percents) > 1 else None
    return {
        "method": row.method,
        "backbone": row.backbone,
        "shots": shots,
        "percent": round(sum(percents) / len(percents), 2) if percents else None,
        "interval_over_seeds": None if interval is None else [round(interval.low, 2), round(interval.high, 2)],
        "by_seed": {str(cell["seed"]): percent for cell, percent in zip(cells, percents, strict=True)},
        "half_widths_over_episodes": row.values(*keys, "half_width"),
        "statuses": list(row.statuses),
        "steps": row.mean("steps"),
        "trained_parameters": row.mean("parameters", "trained"),
        "peak_mb": max(row.values("memory_mb", "max"), default=None),
        "seconds": round(sum(one["run_info"]["total_time"] for one in row.results), 1),
        "runs": [f"runs/{cell_name(**cell)}" for cell in cells],
    }


def reproduction_table(records: Iterable[Record], listed: Sequence[str] = ()) -> str:
    """Return the Markdown table of records, with empty rows for the data sets ``listed`` that have none.

    A row has both numbers of shots, our accuracy and the published one.
    """
    published, by_data = read_published(), {record["data"]: record for record in records}
    lines = []
    for data in dict.fromkeys([*listed, *by_data]):
        rows: dict[tuple[str, str], dict[str, RecordRow]] = {}
        for row in by_data[data]["rows"] if data in by_data else ():
            rows.setdefault((row["method"], row["backbone"]), {})[row["shots"]] = row
        if data in listed:
            for backbone, methods in METHODS.items():
                for method in methods:
                    is_known = method in published and data in published[method].percent
                    if is_known or (method in SHOWN and backbone == CLIP):
                        rows.setdefault((method, backbone), {})
        lines += [_line(data, *key, by_shots, published.get(key[0])) for key, by_shots in rows.items()]
    header = ["data", "method", "backbone", *_by_shots("ours"), *_by_shots("published"), "seeds", "peak MB", "time"]
    return markdown(header, lines)


def _by_shots(kind: str) -> list[str]:
    return [f"{kind}, {shots} shot{'s' * (shots != '1')} %" for shots in SHOTS]


def _line(
    data: str, method: str, backbone: str, by_shots: Mapping[str, RecordRow], published: Published | None
) -> list[str]:
    theirs = {} if published is None else published.percent.get(data, {})
    shown = BACKBONES.get(backbone, backbone)
    other = f" ({published.backbone})" if published is not None and published.backbone != shown else ""
    rows = list(by_shots.values())
    seeds = sorted({seed for row in rows for seed in row["by_seed"]}, key=int)
    memory = [row["peak_mb"] for row in rows if row["peak_mb"] is not None]
    ours = [_accuracy(by_shots[shots]) if shots in by_shots else "" for shots in SHOTS]
    return [
        TITLES.get(data, data),
        method,
        shown,
        *ours,
        *(f"{theirs[shots]:.1f}{other}" if shots in theirs else "" for shots in SHOTS),
        ", ".join(seeds),
        f"{max(memory):,.0f}" if memory else "",
        duration(sum(row["seconds"] for row in rows)) if rows else "",
    ]


def _accuracy(row: RecordRow) -> str:
    """Return an accuracy with its interval over seeds, and the statuses of trainings without success."""
    failed = sorted(set(row["statuses"]) - {"done"})
    if row["percent"] is None:
        return ", ".join(failed)
    interval = row["interval_over_seeds"]
    text = f"{row['percent']:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")
    return f"{text}, {len(row['by_seed'])} of {len(row['statuses'])} seeds" if failed else text


def sources(data: Iterable[str]) -> str:
    """Return a Markdown list of the sources of the published numbers for these data sets."""
    wanted = set(data)
    return "".join(
        f"- {method}, {one.backbone}: {one.source}\n"
        for method, one in read_published().items()
        if wanted & one.percent.keys()
    )


def as_page(record: Record) -> str:
    """Return a record as a Markdown page: conditions, command, table and sources."""
    meta, videos = record["meta"], record["videos"]
    first, last = record["dates"]
    hardware = meta["hardware"]
    counts = ", ".join(f"{count:,} {name}" for name, count in videos.items())
    conditions = [
        f"{record['episodes']:,} episodes of novel classes. Videos: {counts}.",
        f"{hardware['gpu'] or hardware['processor']}, dmgal {meta['versions']['dmgal']}",
        f"({meta['git_revision'] or 'no commit'}), {first if first == last else f'{first} to {last}'}.",
    ]
    parts = [
        f"# Reproduction on {TITLES.get(record['data'], record['data'])}",
        "\n".join(f"    {command}" for command in record["commands"]),
        " ".join(conditions),
        reproduction_table([record]).rstrip(),
        "In parentheses: 95 % interval over the seeds of the trainings. Time is that of all trainings and tests.",
        sources([record["data"]]).rstrip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
