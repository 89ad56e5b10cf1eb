"""Cost of a matrix before it starts: time, memory and disk of each cell, estimated from one task of noise.

An estimate has the times of one training task, of encoding a video and of reading a clip on this machine, multiplied by
the numbers of the recipe. Cells whose kind has a result take the time of that result. The disk has the checkpoints of a
run, and during its tests the states of the videos.
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
from dmgal.bench.matrix.runner import Runner, duration
from dmgal.episodes.evaluation.states import precompute_states
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import DataConfig, Recipe
from dmgal.recipes.run.data import build_catalog, generated_settings, list_catalog, test_clips
from dmgal.videos import VideoCatalog

START_SECONDS = 12.0
"""Seconds of the imports and of the measurements of a cell."""
OPTIMIZER_STATES = 2
"""Tensors of AdamW for each trained parameter."""
SAMPLED_CLIPS = 4
"""Videos that are read to estimate the time of reading."""
TYPICAL_SIZE = 224, 224
"""Height and width of the clips that are read for the estimate."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a cell. ``problem`` is the reason why it cannot run, or None.

    ``run_mb`` stays on the disk, ``states_mb`` is needed there only while the cell is tested.
    """

    seconds: float
    megabytes: float | None = None
    trained: int | None = None
    is_measured: bool = False
    problem: str | None = None
    run_mb: float = 0.0
    states_mb: float = 0.0


@dataclass(frozen=True)
class Videos:
    """Numbers of videos by split, those of other test data, and the seconds to read one clip."""

    splits: Mapping[str, int]
    others: int = 0
    seconds_per_clip: float = 0.0

    def read(self, recipe: Recipe, encoded: int) -> float:
        """Return the seconds of reading ``encoded`` test clips and the clips of training."""
        train, episode, data = recipe.train, recipe.episode, recipe.data
        clips = train.steps * train.tasks_per_step * episode.n_way * (episode.k_shot + episode.n_query) + encoded
        if data.keep_in_memory:
            clips = min(clips, sum(self.splits.values()) + self.others)
        return clips * self.seconds_per_clip / max(1, data.num_workers)


def estimates(cells: Sequence[Cell], experiment: Experiment, results: Mapping[str, Result]) -> dict[str, Estimate]:
    """Return the estimate of each cell by its name. Cells of one kind are estimated once."""
    known = {
        kind: statistics.median([result["run_info"]["total_time"] for result in found])
        for kind, found in by_kind(result for result in results.values() if status(result) == DONE).items()
    }
    of_kind: dict[tuple[object, ...], Estimate] = {}
    videos: dict[str, Videos] = {}
    for cell in cells:
        if cell.kind in of_kind:
            continue
        if cell.kind in known:
            of_kind[cell.kind] = Estimate(known[cell.kind], is_measured=True)
            continue
        data = repr(cell.recipe.data)
        try:
            if data not in videos:
                videos[data] = videos_of(cell.recipe, experiment)
            of_kind[cell.kind] = estimate(cell.recipe, videos[data])
        except DmgalError as error:
            of_kind[cell.kind] = Estimate(0.0, problem=error.problem)
    return {cell.name: of_kind[cell.kind] for cell in cells}


def videos_of(recipe: Recipe, experiment: Experiment) -> Videos:
    """Return the numbers of videos and the time of reading. Data that would be generated are only counted."""
    others = sum(len(list_catalog(other.over(recipe).data, progress=False)) for other in experiment.tests.values())
    if recipe.data.generate != "no":
        return Videos(_generated(recipe.data), others)
    catalog = build_catalog(recipe.data, progress=False)
    splits = {name: len(catalog.split(name)) for name in set(catalog.class_splits or ())}
    return Videos(splits, others, _seconds_per_clip(catalog, recipe))


def _generated(data: DataConfig) -> dict[str, int]:
    assert data.generate != "no"
    settings = generated_settings(data.generate)(seed=data.seed)
    return {name: len(classes) * settings.clips_per_class for name, classes in settings.split().items()}


def _seconds_per_clip(catalog: VideoCatalog, recipe: Recipe) -> float:
    clips = test_clips(catalog, recipe, TYPICAL_SIZE)
    places = range(0, len(catalog), -(-len(catalog) // SAMPLED_CLIPS))
    return statistics.median([_seconds(lambda place=place: clips[place]) for place in places])


def estimate(recipe: Recipe, videos: Videos) -> Estimate:
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
        start = time.perf_counter()
        states = precompute_states(recognizer, task.query).tensors()
        seconds_per_video = (time.perf_counter() - start) / task.num_query
    validations = -(-train.steps // train.validate_every) or 1
    tested = videos.splits.get("test", 0) + videos.others
    encoded = validations * videos.splits.get("val", 0) + tested
    work = train.steps * train.tasks_per_step * seconds_per_task + encoded * seconds_per_video
    reading = videos.read(recipe, encoded)
    workers = 0 if recipe.data.keep_in_memory else recipe.data.num_workers
    weights = 4 * trained / 2**20
    return Estimate(
        seconds=START_SECONDS + (max(work, reading) if workers else work + reading),
        megabytes=None if peak is None else peak + OPTIMIZER_STATES * weights,
        trained=trained,
        run_mb=weights * (1 + train.keep_checkpoints * (1 + OPTIMIZER_STATES)),
        states_mb=tested * sum(tensor.nbytes for tensor in states.values()) / task.num_query / 2**20,
    )


def disk_mb(costs: Mapping[str, Estimate], processes: int) -> float:
    """Return the disk of all cells: their runs, and the states of those that are tested at the same time."""
    largest = sorted((cost.states_mb for cost in costs.values()), reverse=True)[: max(1, processes)]
    return sum(cost.run_mb for cost in costs.values()) + sum(largest)


def plan_of(runner: Runner) -> str:
    """Return the cells that a runner would run with their estimated time, and the total.

    Raises:
        DmgalError: earlier results cannot be mixed with those of the cells.
    """
    cells, processes, num_cells = runner.pending(), runner.processes, len(runner.experiment.cells())
    costs = estimates(cells, runner.experiment, runner.results())
    lines = [f"{len(cells)} cells to run, {num_cells - len(cells)} finished"]
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
    disk = disk_mb(costs, processes)
    return "\n".join([*lines, f"in total about {duration(total)} with {processes} process(es), {disk:,.0f} MB on disk"])


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
