"""Motion that transfers: the bundled motion adapter on real clips that no training has seen.

    python -m dmgal.bench.motion_transfer ut_interaction VIDEOS/ut_interaction
    python -m dmgal.bench.motion_transfer weizmann VIDEOS/weizmann --others runs/dmgal_ft
    python -m dmgal.bench.motion_transfer weizmann VIDEOS/weizmann --backbone RESNET
    python -m dmgal.bench.motion_transfer weizmann VIDEOS/weizmann --backbone RESNET --expert runs/resnet50-smga

Adds a data set to ``bench/results/motion_transfer.json``. All classes of the folder are novel. Every video is encoded
once by the recognizer of ``method/motion``. Its parts are compared alone (frozen as it is, frozen centered, motion
adapter) and together (``LateFusion``, also without the adapter), on the same episodes, with paired differences. Data
sets that were used for choices are marked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from dmgal.backbones import VideoState
from dmgal.bench.measuring import write_report
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, Evaluation, encode_videos, evaluate, paired_difference
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.heads import BiMHM, LateFusion
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import test_clips
from dmgal.recipes.run.evaluation import default_recipe, load_run
from dmgal.recipes.run.folder import Run, environment
from dmgal.videos import VideoCatalog

PARTS = {"frozen as it is": "frames", "frozen": "centered0", "motion adapter": "centered1"}
"""State of each part in LateFusion. ``frozen`` is the baseline of all recipes: features minus their mean over time."""
BUNDLED = "tiny-clip-motion"
FUSED = "weighted per task"
WITHOUT = "weighted without the adapter"
CHOSEN_ON = ("ut_interaction", "ssv2_mini base and val")
"""Data sets on which the adapter and the constants of LateFusion were chosen."""
WAYS, SHOTS, SEED = 5, (1, 2, 5), 0


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    name: tyro.conf.Positional[str]
    """Name of the data set."""
    root: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of class folders of videos."""
    backbone: str = "tiny-clip"
    """Frozen backbone beside the motion adapter."""
    expert: str = BUNDLED
    """Motion adapter: a bundled one, or the run of another, such as one that was trained for the backbone."""
    others: tuple[Path, ...] = ()
    """Runs to compare with, such as full fine-tuning on the same generated videos."""
    episodes: int = 3000
    """Number of episodes."""
    out: Path = Path(__file__).parent / "results" / "motion_transfer.json"


def catalog_of(folders: Sequence[Path]) -> VideoCatalog:
    """Return the videos of all class folders in some folders, with paths relative to their common parent."""
    catalogs = [VideoCatalog.from_folders(folder) for folder in folders]
    if len(catalogs) == 1:
        return catalogs[0]
    root = folders[0].parent
    rows = [
        (f"{folder.name}/{name}", f"{folder.relative_to(root)}/{video}")
        for folder, catalog in zip(folders, catalogs, strict=True)
        for video, name in zip(catalog.videos, (catalog.class_names[c] for c in catalog.labels), strict=True)
    ]
    names = sorted({name for name, _ in rows})
    labels = np.array([names.index(name) for name, _ in rows])
    return VideoCatalog(root, [video for _, video in rows], labels, tuple(names))


def encoded(
    recipe: Recipe, recognizer: FewShotRecognizer, catalog: VideoCatalog, progress: bool = True
) -> PrecomputedStates:
    """Return the states of all videos of a catalog."""
    recipe = replace(recipe, data=replace(recipe.data, num_workers=0))
    clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
    return encode_videos(recognizer, clips, num_workers=0, progress=progress)


def sampler_of(catalog: VideoCatalog, shots: int, episodes: int, ways: int = WAYS) -> EpisodeSampler:
    """Return the episodes on which everything is compared."""
    return EpisodeSampler(catalog.labels, ways, shots, 1, episodes, SEED, catalog.class_names)


def evaluated(
    recipe: Recipe,
    recognizer: FewShotRecognizer,
    catalog: VideoCatalog,
    episodes: int,
    ways: int = WAYS,
    progress: bool = True,
) -> dict[int, Evaluation]:
    """Return the evaluations of a recognizer with 1 and 5 shots."""
    states = encoded(recipe, recognizer, catalog, progress)
    return {
        shots: evaluate(recognizer, states, sampler_of(catalog, shots, episodes, ways), progress=progress)
        for shots in (1, 5)
    }


def evaluations_of(
    recipe: Recipe, recognizer: FewShotRecognizer, catalog: VideoCatalog, episodes: int
) -> dict[int, dict[str, Evaluation]]:
    """Return the evaluations of the recognizer of ``method/motion``, and of its parts, by shots and name."""
    states = encoded(recipe, recognizer, catalog)
    frozen = FewShotRecognizer(recognizer.encoder, LateFusion())
    alone = FewShotRecognizer(recognizer.encoder, BiMHM(logit_scale=10.0, eps=0.0))
    found: dict[int, dict[str, Evaluation]] = {}
    for shots in SHOTS:
        sampler = sampler_of(catalog, shots, episodes)
        found[shots] = {
            name: evaluate(alone, PrecomputedStates.undivided(VideoState(frames=states.query[state])), sampler)
            for name, state in PARTS.items()
        }
        found[shots][WITHOUT] = evaluate(frozen, states, sampler)
        found[shots][FUSED] = evaluate(recognizer, states, sampler)
    return found


def summary(evaluations: Mapping[str, Evaluation]) -> dict[str, object]:
    """Return the accuracies, and the paired differences of the adapter and of the fusion to everything else."""
    differences = {
        f"{first} - {second}": as_json(paired_difference(evaluations[first], evaluations[second]))
        for first in ("motion adapter", FUSED)
        for second in evaluations
        if first != second
    }
    return {"accuracy": {n: as_json(e.accuracy) for n, e in evaluations.items()}, "difference": differences}


def as_json(estimate: Estimate) -> dict[str, float]:
    """Return mean and half-width of the interval, in percent or points."""
    return {"percent": round(estimate.mean, 2), "half_width": round(estimate.half_width, 2)}


def measure(options: Options) -> dict[str, object]:
    """Return the result of one data set and backbone."""
    catalog = catalog_of(options.root)
    recipe = default_recipe(options.backbone, options.expert)
    found = evaluations_of(recipe, build_recognizer(recipe).eval(), catalog, options.episodes)
    for folder in options.others:
        trained, recognizer = load_run(Run(folder))
        for shots, evaluation in evaluated(trained, recognizer, catalog, options.episodes).items():
            found[shots][folder.name] = evaluation
    return {
        "videos": len(catalog),
        "classes": len(catalog.class_names),
        "episodes": options.episodes,
        "used_for_choices": options.name in CHOSEN_ON,
        "shots": {str(shots): summary(evaluations) for shots, evaluations in found.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Measure one data set and add it to the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    report = json.loads(options.out.read_text()) if options.out.exists() else {"results": {}}
    models = " with ".join(Path(name).name for name in (options.backbone, options.expert) if name != BUNDLED)
    result = measure(options)
    report["results"].setdefault(models, {})[options.name] = result
    report["environment"] = {key: value for key, value in environment().items() if key != "command"}
    write_report(report, options.out, show=False)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
