"""Adapters in a backbone of stages: accuracy, parameters and operations of a trained run, and of its frozen backbone.

    dmgal train method/smga data/moving_shapes --backbone.name RESNET --out runs/smga
    python -m dmgal.bench.staged runs/smga

Both are evaluated on the same episodes of novel classes. The frozen backbone is the run's own, with its adapters
switched off: with the run's head, whose features are centered over time, and with the same head on features as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from peft import PeftModel
from torch.utils.flop_counter import FlopCounterMode

from dmgal.adapters import DmgalConfig
from dmgal.bench.measuring import hardware, write_report
from dmgal.bench.motion_transfer import as_json
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, encode_videos, evaluate, paired_difference
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.heads import BiMHM
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import build_catalog, test_clips
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.videos import VideoCatalog


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    episodes: int = 5000
    """Number of episodes."""
    shots: tuple[int, ...] = (1, 5)
    """Support videos per class."""
    out: Path = Path(__file__).parent / "results" / "staged.json"


ADAPTED, FROZEN, AS_IS = "adapted", "frozen", "frozen as it is"


def evaluations_of(
    recognizer: FewShotRecognizer, states: dict[str, PrecomputedStates], catalog: VideoCatalog, options: Options
) -> dict[int, dict[str, Evaluation]]:
    """Return the evaluations of the adapted and of the frozen backbone, by shots and name."""
    found = {}
    for shots in options.shots:
        sampler = EpisodeSampler(catalog.labels, 5, shots, 1, options.episodes, 0, catalog.class_names)
        found[shots] = {name: evaluate(recognizer, states[name], sampler) for name in (ADAPTED, FROZEN)}
        found[shots][AS_IS] = evaluate(as_is(recognizer), states[AS_IS], sampler)
    return found


def as_is(recognizer: FewShotRecognizer) -> FewShotRecognizer:
    """Return the recognizer with a head that compares the features as they are."""
    return FewShotRecognizer(recognizer.encoder, BiMHM(logit_scale=10.0, eps=0.0))


@torch.no_grad()
def cost_of(recognizer: FewShotRecognizer, recipe: Recipe) -> dict[str, float]:
    """Return the operations of encoding one video, in GFLOP, and the numbers of parameters."""
    height, width = recognizer.encoder.image_size
    video = torch.zeros(1, recipe.data.num_frames, 3, height, width)
    with FlopCounterMode(display=False) as counter:
        recognizer.encoder.encode(video)
    parameters = list(recognizer.encoder.backbone.named_parameters())
    added = sum(parameter.numel() for name, parameter in parameters if "dmgal_" in name)
    total = sum(parameter.numel() for _, parameter in parameters)
    return {"gflop": round(counter.get_total_flops() / 1e9, 3), "added": added, "backbone": total - added}


def measure(options: Options) -> dict[str, object]:
    """Return accuracies, paired differences and costs."""
    recipe, recognizer = load_run(Run(options.run))
    recipe = replace(recipe, data=replace(recipe.data, num_workers=0))
    catalog = build_catalog(recipe.data).split("test")
    clips = test_clips(catalog, recipe, recognizer.encoder.image_size)
    backbone = recognizer.encoder.backbone
    assert isinstance(backbone, PeftModel)
    config = backbone.peft_config["default"]
    assert isinstance(config, DmgalConfig)
    states = {ADAPTED: encode_videos(recognizer, clips, num_workers=0)}
    costs = {ADAPTED: cost_of(recognizer, recipe)}
    with backbone.disable_adapter():
        states[FROZEN] = encode_videos(recognizer, clips, num_workers=0)
        states[AS_IS] = encode_videos(as_is(recognizer), clips, num_workers=0)
        costs[FROZEN] = cost_of(recognizer, recipe)
    found = evaluations_of(recognizer, states, catalog, options)
    return {
        "backbone": Path(recipe.backbone.name).name,
        "image_size": list(recognizer.encoder.image_size),
        "smga_blocks": list(config.smga_blocks or []),
        "steps": recipe.train.steps,
        "classes": len(catalog.class_names),
        "episodes": options.episodes,
        "cost": costs,
        "accuracy": {str(k): {name: as_json(e.accuracy) for name, e in row.items()} for k, row in found.items()},
        "difference": {
            str(k): {name: as_json(paired_difference(row[ADAPTED], row[name])) for name in (FROZEN, AS_IS)}
            for k, row in found.items()
        },
        "hardware": hardware(),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure a run and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    write_report(measure(options), options.out)


if __name__ == "__main__":
    main()
