"""Cost of a matrix before it starts: time and memory of each cell, estimated from one task of noise.

An estimate has the time of one training task and of encoding a video on this machine, multiplied by the numbers of the
recipe. Reading videos is not included. Cells whose kind has a result take the time of that result.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dmgal.bench.matrix.experiment import Cell, Experiment
from dmgal.bench.matrix.measurements import memory_mb, noise_task, parameters, training_task
from dmgal.bench.matrix.results import DONE, Result, by_kind, status
from dmgal.bench.matrix.runner import duration
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import build_catalog, generated_settings

START_SECONDS = 12.0
"""Seconds of the imports and of the measurements of a cell."""
OPTIMIZER_STATES = 2
"""Tensors of AdamW for each trained parameter."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a cell. ``problem`` is the reason why it cannot run, or None."""

    seconds: float
    megabytes: float | None = None
    trained: int | None = None
    is_measured: bool = False
    problem: str | None = None


def estimates(cells: Sequence[Cell], experiment: Experiment, results: Mapping[str, Result]) -> dict[str, Estimate]:
    """Return the estimate of each cell by its name. Cells of one kind are estimated once."""
    known = {
        kind: statistics.median([result["run_info"]["total_time"] for result in found])
        for kind, found in by_kind(result for result in results.values() if status(result) == DONE).items()
    }
    of_kind: dict[tuple[Any, ...], Estimate] = {}
    videos: dict[str, dict[str, int]] = {}
    for cell in cells:
        if cell.kind in of_kind:
            continue
        if cell.kind in known:
            of_kind[cell.kind] = Estimate(known[cell.kind], is_measured=True)
            continue
        data = cell.recipe.data
        try:
            counts = videos.setdefault(repr(data), {}) or videos[repr(data)] | number_of_videos(data)
            videos[repr(data)] = counts
            of_kind[cell.kind] = estimate(cell.recipe, counts, experiment)
        except DmgalError as error:
            of_kind[cell.kind] = Estimate(0.0, problem=error.problem)
    return {cell.name: of_kind[cell.kind] for cell in cells}


def number_of_videos(data: DataConfig) -> dict[str, int]:
    """Return the number of validation and test videos. Data that would be generated are only counted."""
    if data.generate != "no":
        settings = generated_settings(data.generate)(seed=data.seed)
        return {name: len(classes) * settings.clips_per_class for name, classes in settings.split().items()}
    catalog = build_catalog(data, progress=False)
    return {name: len(catalog.split(name)) for name in set(catalog.class_splits or ())}


def estimate(recipe: Recipe, videos: Mapping[str, int], experiment: Experiment) -> Estimate:
    """Return the estimated cost of a cell with this recipe, from one training task and one encoding."""
    recognizer = build_recognizer(recipe)
    before = memory_mb()
    task = noise_task(recipe, recognizer.encoder.image_size)
    train, trained = recipe.train, parameters(recognizer, recipe)["trained"]
    seconds_per_task, peak = 0.0, before
    if train.steps:
        recognizer.train()
        training_task(recognizer, task)  # allocates
        seconds_per_task, peak = _seconds(lambda: training_task(recognizer, task)), memory_mb()
    recognizer.eval()
    with torch.no_grad():
        seconds_per_video = _seconds(lambda: recognizer.encode(task.query)) / task.num_query
    validations = -(-train.steps // train.validate_every) or 1
    encoded = validations * videos.get("val", 0) + videos.get("test", 0)
    seconds = START_SECONDS + train.steps * train.tasks_per_step * seconds_per_task + encoded * seconds_per_video
    weights = OPTIMIZER_STATES * 4 * trained / 2**20
    return Estimate(seconds, None if peak is None else peak + weights, trained)


def plan_as_text(cells: Sequence[Cell], costs: Mapping[str, Estimate], finished: int, processes: int) -> str:
    """Return the cells to run with their estimated time, and the total."""
    lines = [f"{len(cells)} cells to run, {finished} finished"]
    width = max((len(cell.name) for cell in cells), default=0)
    for cell in cells:
        cost = costs[cell.name]
        if cost.problem is not None:
            lines.append(f"  {cell.name:<{width}}  cannot run: {cost.problem}")
            continue
        source = "as measured before" if cost.is_measured else "estimated"
        memory = f", {cost.megabytes:,.0f} MB" if cost.megabytes else ""
        trained = f", {cost.trained:,} trained parameters" if cost.trained is not None else ""
        lines.append(f"  {cell.name:<{width}}  {duration(cost.seconds)} {source}{memory}{trained}")
    total = sum(costs[cell.name].seconds for cell in cells) / max(1, processes)
    return "\n".join([*lines, f"in total about {duration(total)} with {processes} process(es), without reading videos"])


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
