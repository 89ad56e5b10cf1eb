"""Measures a trained run on classes it has never seen.

    dmgal evaluate runs/mine                          novel classes, the run's own ways and shots
    dmgal evaluate runs/mine --shots 5 --split val

Every video is encoded once. Where a split holds motions together with their time reversals, tasks of only these are
added: two-way tasks of one pair (chance 50 %) and four-way tasks of two, where a model that is blind to the order of
frames cannot pass 50 %.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from dmgal.backbones import VideoState
from dmgal.episodes import (
    EpisodeSampler,
    Evaluation,
    FewShotRecognizer,
    ReversalSampler,
    VideoCatalog,
    encode_videos,
    evaluate,
)
from dmgal.episodes.bad_videos import without_bad
from dmgal.episodes.sampler import TaskSampler
from dmgal.recipes.bad_videos import tell_skipped
from dmgal.recipes.build import build_catalog, build_recognizer, dtype_of, test_clips
from dmgal.recipes.config import Recipe
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.runs import Run, environment, read_tensors
from dmgal.recipes.weights import load_trained_state


@dataclass(frozen=True)
class Protocol:
    """Which episodes; the same seed gives every method the same ones."""

    split: Literal["test", "val"] = "test"
    """test: the novel classes. Look at them once, for the report."""
    n_way: Annotated[int | None, tyro.conf.arg(aliases=["--ways"])] = None
    """None: as in training."""
    k_shot: Annotated[int | None, tyro.conf.arg(aliases=["--shots"])] = None
    """None: as in training."""
    n_query: Annotated[int, tyro.conf.arg(aliases=["--queries"])] = 1
    """Query videos per class."""
    episodes: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Evaluate:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, as dmgal train writes it."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    quiet: bool = False
    """No progress bars."""


def load_run(
    run: Run, *, backbone: nn.Module | None = None, head: nn.Module | None = None
) -> tuple[Recipe, FewShotRecognizer]:
    """The recipe of a run and the recognizer with its best weights.

    A run that was trained on objects of your own (see ``dmgal.recipes.train.run``) needs them again.
    """
    recipe = run.recipe()
    run.check_complete(recipe)
    adapter = run.adapter if run.adapter.exists() else None
    recognizer = build_recognizer(recipe, backbone=backbone, head=head, adapter=adapter)
    if run.weights.exists():
        load_trained_state(recognizer, read_tensors(run.weights), run.weights)
    return recipe, recognizer.to(dtype_of(recipe.train.precision)).eval()


def samplers(catalog: VideoCatalog, recipe: Recipe, protocol: Protocol) -> dict[str, TaskSampler]:
    """The tasks of a protocol by name: random classes, and where there are reversal pairs, only these."""
    k_shot, n_query = protocol.k_shot or recipe.episode.k_shot, protocol.n_query
    tasks = k_shot, n_query, protocol.episodes, protocol.seed, catalog.class_names
    found: dict[str, TaskSampler] = {
        "accuracy": EpisodeSampler(catalog.labels, protocol.n_way or recipe.episode.n_way, *tasks)
    }
    pairs = catalog.reversal_pairs
    for num_pairs, name in ((1, "reversal_two_way"), (2, "reversal_four_way")):
        if len(pairs) >= num_pairs:
            num_tasks = k_shot, n_query, num_pairs, protocol.episodes, protocol.seed, catalog.class_names
            found[name] = ReversalSampler(pairs, catalog.labels, *num_tasks)
    return found


def measure(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    progress: bool = True,
) -> dict[str, Evaluation]:
    """All tasks of a protocol on one split of a catalog, from videos that are encoded once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalog = catalog.split(protocol.split)
    tasks = samplers(catalog, recipe, protocol)
    clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
    recognizer.to(device)
    states: VideoState = encode_videos(
        recognizer, clips, num_workers=recipe.data.num_workers, device=device, progress=progress
    )
    bad = clips.bad_videos.met
    if bad:
        tell_skipped(len(bad), len(catalog), "which could not be read", [catalog.videos[video] for video in bad])
        catalog, states = without_bad(catalog, states, bad)
        tasks = samplers(catalog, recipe, protocol)
    data = repr((recipe.data.generate, recipe.data.seed, catalog.class_names, tuple(catalog.videos)))
    return {name: evaluate(recognizer, states, sampler, device, progress, data) for name, sampler in tasks.items()}


def as_json(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Means and half-widths in percent."""
    return {
        name: {
            "percent": round(evaluation.accuracy.mean, 3),
            "half_width": round(evaluation.accuracy.half_width, 3),
            "episodes": len(evaluation.accuracies),
            "episodes_hash": evaluation.episodes,
        }
        for name, evaluation in evaluations.items()
    }


def main(argv: list[str] | None = None) -> int | None:
    """Evaluate the run of a command line."""
    options = tyro.cli(
        Evaluate,
        prog="dmgal evaluate",
        args=sys.argv[1:] if argv is None else argv,
        description=as_description(__doc__),
    )
    run = Run(options.run)
    recipe, recognizer = load_run(run)
    catalog = build_catalog(recipe.data, progress=not options.quiet)
    protocol = options.protocol
    evaluations = measure(recognizer, recipe, catalog, protocol, progress=not options.quiet)
    ways, shots = protocol.n_way or recipe.episode.n_way, protocol.k_shot or recipe.episode.k_shot
    print(
        f"{options.run}: {protocol.split} classes, {shots}-shot, {protocol.episodes} episodes, 95 % intervals over them"
    )
    for name, evaluation in evaluations.items():
        label = f"{ways}-way accuracy" if name == "accuracy" else name.replace("_", " ")
        print(f"  {label:<20} {evaluation.accuracy} %")
    result = {"protocol": vars(protocol), "results": as_json(evaluations), "environment": environment()}
    path = run.write_result(
        f"{protocol.split}_{ways}way_{shots}shot_{protocol.n_query}query_{protocol.episodes}episodes_seed{protocol.seed}",
        result,
    )
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
