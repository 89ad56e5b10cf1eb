"""Comparison of runs on the same episodes of the same data, as rows of values and as a text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, Evaluation, paired_difference
from dmgal.errors import DmgalError
from dmgal.files import listed, printable
from dmgal.recipes.reports.comparison import Method, Pairing, grouped, methods_as_json, paired, signed
from dmgal.recipes.run.build import visual_tower_parameters
from dmgal.recipes.run.config import DataOverrides, Recipe
from dmgal.recipes.run.encoding import Keep, Kept, launched_processes
from dmgal.recipes.run.evaluation import (
    Protocol,
    as_json,
    encode_with_text,
    evaluate_tasks,
    evaluation_data,
    load_run,
    protocol_as_json,
    samplers,
    seen_in_training,
)
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.probe import encode_for_probe, evaluate_probe
from dmgal.recipes.run.text import TextOptions
from dmgal.recipes.run.text_lora import num_trained
from dmgal.videos import VideoCatalog


@dataclass(frozen=True)
class Row:
    """One method of a comparison."""

    name: str
    evaluations: Mapping[str, Evaluation]
    difference: Estimate
    """Difference of the accuracy to the first row, in points."""
    trained_parameters: int
    tower_parameters: int
    saved_bytes: int
    probe: Mapping[str, Evaluation] = field(default_factory=dict)
    """Evaluations of the probe on the same episodes. Empty if there is none."""
    cost: Mapping[str, float | None] = field(default_factory=dict)
    """``seconds_per_step`` and ``peak_memory_mb`` of the training, if logged."""

    text: Mapping[str, Any] | None = None
    """What a report says about the text of the class names, if it was used."""

    @property
    def share(self) -> float:
        """Trained parameters in percent of the visual tower's."""
        return 100 * self.trained_parameters / self.tower_parameters


@dataclass(frozen=True)
class Comparison:
    """Results on the same episodes: one row per run, the methods, and each method paired with the first."""

    rows: list[Row]
    methods: list[Method]
    pairings: list[Pairing]
    catalog: VideoCatalog
    recipe: Recipe
    """Recipe of the first run."""
    seen: Mapping[str, list[str]] = field(default_factory=dict)
    """Classes of the split that each run has seen in training, by normalized name."""


def compare_in_depth(
    folders: Sequence[Path],
    protocol: Protocol,
    progress: bool = True,
    states: Kept = "disk",
    disagreements: int = 5,
    data: DataOverrides | None = None,
    cache: Path | None = None,
    probe: bool = False,
    text: TextOptions | None = None,
) -> Comparison | None:
    """Return the full comparison. Return None on all ranks but 0, which only help to encode and evaluate.

    With ``probe``, each video is encoded a second time, for the probe of each run. With ``text``, all runs use the text
    of the class names.
    """
    data = data or DataOverrides()
    processes = launched_processes()
    rows: list[Row] = []
    recipes: list[Recipe] = []
    catalogs: list[VideoCatalog] = []
    seen: dict[str, list[str]] = {}
    for folder in folders:
        trained, recognizer = load_run(Run(folder))
        is_shown = progress and not processes.rank
        recipe, catalog = evaluation_data(Run(folder), trained, data, protocol.split, is_shown)
        states_folder = folder / "states" if cache is None else cache.joinpath(*folder.resolve().parts[1:])
        keep = Keep(states, states_folder, processes)
        options = text or TextOptions()
        with_names, encoded, described = encode_with_text(
            recognizer, recipe, catalog, protocol, options, progress, keep
        )
        first = rows[0].evaluations if rows else None
        evaluations = evaluate_tasks(with_names, recipe, encoded, protocol, is_shown, like=first)
        _check_same_episodes(first or evaluations, evaluations, folder, folders[0])
        of_probe = {}
        if probe:
            for_probe = encode_for_probe(recognizer, recipe, catalog, protocol, progress, keep)
            of_probe = evaluate_probe(recognizer, recipe, for_probe, protocol, is_shown, like=evaluations)
        rows.append(_row(Run(folder), recipe, recognizer, evaluations, first or evaluations, of_probe, described))
        seen[rows[-1].name] = seen_in_training(Run(folder), trained, catalog, protocol.split)
        recipes.append(recipe)
        catalogs.append(encoded.catalog)
    if processes.rank:
        return None
    methods = grouped([row.name for row in rows], recipes, [row.evaluations["accuracy"] for row in rows])
    pairings = [paired(method, methods[0], disagreements) for method in methods[1:]]
    return Comparison(rows, methods, pairings, catalogs[0], recipes[0], seen)


def _row(
    run: Run,
    recipe: Recipe,
    recognizer: FewShotRecognizer,
    evaluations: Mapping[str, Evaluation],
    first: Mapping[str, Evaluation],
    probe: Mapping[str, Evaluation],
    text: Mapping[str, object] | None,
) -> Row:
    return Row(
        name=printable(run.folder.name),
        evaluations=evaluations,
        difference=paired_difference(evaluations["accuracy"], first["accuracy"]),
        trained_parameters=num_trained(recognizer, recipe),
        tower_parameters=visual_tower_parameters(recognizer),
        saved_bytes=run.trained_bytes() if recipe.train.steps else 0,
        probe=probe,
        cost=run.training_cost(),
        text=text,
    )


def _check_same_episodes(
    first: Mapping[str, Evaluation], evaluations: Mapping[str, Evaluation], folder: Path, first_folder: Path
) -> None:
    if {name: e.episodes for name, e in first.items()} != {name: e.episodes for name, e in evaluations.items()}:
        raise DmgalError(
            "Runs can only be compared on the same episodes.",
            received=f"{folder}: other classes or videos than {first_folder}",
            expected="runs on the same data set, ways and shots",
            remedy="Compare runs with the same data.root. Pass --ways and --shots if theirs differ.",
        )


def comparison_as_json(found: Comparison, protocol: Protocol, is_inexact: bool) -> dict[str, object]:
    """Return the comparison for a JSON file. ``is_inexact``: states were stored as float16."""
    described = protocol_as_json(protocol, found.recipe, found.catalog)
    described |= {"text": found.rows[0].text or described["text"], "seen_classes": found.seen}
    sampler = samplers(found.catalog, found.recipe, protocol)["accuracy"]
    numbers: dict[str, object] = {"protocol": described, "rows": rows_as_json(found.rows)}
    numbers |= methods_as_json(found.methods, found.pairings, found.catalog, sampler)
    return numbers | ({"inexact": "states were kept as float16"} if is_inexact else {})


def rows_as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the values of the table."""
    return [
        {
            "run": row.name,
            "results": as_json(row.evaluations),
            **({"probe": as_json(row.probe)} if row.probe else {}),
            "difference_to_first": {
                "points": round(row.difference.mean, 3),
                "half_width": round(row.difference.half_width, 3),
            },
            "trained_parameters": row.trained_parameters,
            "visual_tower_parameters": row.tower_parameters,
            "saved_bytes": row.saved_bytes,
            "text": row.text,
            **row.cost,
        }
        for row in rows
    ]


HEADINGS = (
    "method",
    "accuracy %",
    "difference",
    "reversal %",
    "4-way rev. %",
    "trained",
    "of tower",
    "peak MB",
    "s/step",
    "saved",
)
PROBE = "probe %"
"""Heading of the last column, if the rows have a probe."""


def headings(rows: Sequence[Row]) -> list[str]:
    """Return the headings of the table."""
    return [*HEADINGS, *([PROBE] if any(row.probe for row in rows) else [])]


def cells(row: Row, is_first: bool) -> list[str]:
    """Return the row's texts in the order of `headings`."""

    def accuracy(name: str) -> str:
        return str(row.evaluations[name].accuracy) if name in row.evaluations else "-"

    seconds, memory = row.cost.get("seconds_per_step"), row.cost.get("peak_memory_mb")
    return [
        row.name,
        accuracy("accuracy"),
        "-" if is_first else signed(row.difference),
        accuracy("reversal_two_way"),
        accuracy("reversal_four_way"),
        f"{row.trained_parameters:,}",
        f"{row.share:.1f} %",
        f"{memory:.0f}" if memory else "-",
        f"{seconds:.3f}" if seconds else "-",
        f"{row.saved_bytes / 1024:.0f} KB" if row.saved_bytes else "-",
        *([str(row.probe["accuracy"].accuracy)] if row.probe else []),
    ]


def as_text(rows: Sequence[Row]) -> str:
    """Return aligned columns with headings. Accuracies have 95 % intervals over episodes."""
    lines = [headings(rows), *(cells(row, index == 0) for index, row in enumerate(rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([padded[0], "-" * len(padded[0]), *padded[1:]])


def names_of(targets: Sequence[Path]) -> dict[str, Path]:
    """Return the targets by the last parts of their paths that tell them apart.

    Raises:
        DmgalError: a target is given twice.
    """
    for count in range(1, max(len(root.resolve().parts) for root in targets) + 1):
        names = [printable("/".join(root.resolve().parts[-count:])) for root in targets]
        if len({*names}) == len(targets):
            return dict(zip(names, targets, strict=True))
    raise DmgalError(
        "A target is given twice.",
        received=listed([str(root) for root in targets]),
        expected="different folders",
        remedy="Remove one of them.",
    )


def matrix_as_text(by_target: Mapping[str, Comparison]) -> str:
    """Return one line per run and one column per target: accuracies, and paired differences to the first run."""
    names = [row.name for row in next(iter(by_target.values())).rows]
    lines = [["method", *by_target]]
    for index, name in enumerate(names):
        rows = [found.rows[index] for found in by_target.values()]
        accuracies = [row.evaluations["accuracy"].accuracy for row in rows]
        gains = [f" ({signed(row.difference)})" if index else "" for row in rows]
        lines.append([name, *(f"{one}{gain}" for one, gain in zip(accuracies, gains, strict=True))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [
        f"{target}: {run} has seen {len(classes)} of {len(found.catalog.class_names)} classes: {listed(classes)}"
        for target, found in by_target.items()
        for run, classes in found.seen.items()
        if classes
    ]
    return "\n".join([padded[0], "-" * len(padded[0]), *padded[1:], *notes])
