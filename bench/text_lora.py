"""Does a LoRA in the text tower help? ClipFSAR on moving shapes with captions of their motions, validation classes.

    python -m dmgal.bench.text_lora --data data/moving_shapes --runs runs/text_lora

Writes ``bench/results/text_lora.json``. tiny-clip was trained on stills, so it has no words for movement, and its
zero-shot recognition of motions is at chance (``bench/text.py``). All runs train Smga-Adapters and the head, one of
them also a LoRA in the text tower. With a LoRA, the loss between videos and texts is among the classes of a task, so
another run has this loss and a frozen tower. They are compared on the same episodes of validation classes, by clips
whose class has a text, and by text alone, which is compared with the features of the run. Motions without words are
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import tyro
from accelerate.utils import set_seed
from torch import nn

from dmgal.backbones import ClassTexts
from dmgal.bench.measuring import write_report
from dmgal.bench.motion_transfer import as_json
from dmgal.bench.text import caption
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, paired_difference
from dmgal.episodes.heads import ClipFSAR, TextFusion
from dmgal.recipes import train
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe, TextConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, encode, evaluate_tasks, load_run
from dmgal.recipes.run.folder import Run, environment
from dmgal.recipes.run.layers import from_mapping, merge_layers, read_layer
from dmgal.recipes.run.text import TextOptions, with_class_texts
from dmgal.recipes.run.text_lora import num_trained, text_lora_of
from dmgal.videos import VideoCatalog
from dmgal.videos.moving_shapes.motions import all_motions

FROZEN, TASK_LOSS, LORA = "frozen tower", "frozen tower, loss of the LoRA", "LoRA"
"""Names of the runs."""
UNNAMED = ("rotate", "scale")
"""Families of motions that tiny-clip has no words for."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    data: Path = Path("data/moving_shapes")
    """Folder of moving shapes, generated if it is not there."""
    runs: Path = Path("runs/text_lora")
    """Folder of the runs."""
    rank: int = 8
    """Rank of the LoRA."""
    steps: int = 100
    """Training steps."""
    learning_rate: float = 1e-3
    """Peak learning rate of all runs."""
    episodes: int = 2000
    """Number of episodes of validation classes."""
    out: Path = Path(__file__).parent / "results" / "text_lora.json"


class FrozenTower(ClipFSAR):
    """The head with the losses of a trained text tower. The tower stays frozen, and a new LoRA has no effect."""

    def use_texts(self, texts: ClassTexts, base_classes: Sequence[str], tower: nn.Module | None = None) -> None:
        """Freeze the tower first."""
        super().use_texts(texts, base_classes, None if tower is None else tower.requires_grad_(False))


def captioned(catalog: VideoCatalog) -> VideoCatalog:
    """Return the classes with a caption, which becomes their name."""
    families = {motion.name: motion.family for motion in all_motions()}
    classes = [number for number, name in enumerate(catalog.class_names) if families[name] not in UNNAMED]
    videos = np.flatnonzero(np.isin(catalog.labels, classes))
    splits = catalog.class_splits or ()
    return VideoCatalog(
        catalog.root,
        [catalog.videos[video] for video in videos.tolist()],
        np.searchsorted(classes, catalog.labels[videos]),
        tuple(caption(catalog.class_names[number]) for number in classes),
        tuple(splits[number] for number in classes),
    )


def recipe_of(options: Options, rank: int | None) -> Recipe:
    """Return the recipe of a run, with or without LoRA."""
    changes: dict[str, object] = {
        "backbone": {"trainable": False},
        "data": {"root": options.data},
        "train": {
            "steps": options.steps,
            "learning_rate": options.learning_rate,
            "validate_every": options.steps,
            "checkpoint_every": options.steps,
        },
    }
    layers = [read_layer(name) for name in ("method/smga", "method/clip_fsar", "data/moving_shapes")]
    return replace(from_mapping(Recipe, merge_layers([*layers, changes])), text=TextConfig(rank))


def evaluations(name: str, catalog: VideoCatalog, options: Options) -> tuple[dict[str, Evaluation], int]:
    """Train a run, and return its evaluations by clips and by text alone, and the number of trained parameters."""
    recipe, run = recipe_of(options, None if name == FROZEN else options.rank), options.runs / name.replace(" ", "_")
    head = None
    if name == TASK_LOSS:
        set_seed(recipe.train.seed)  # the start of the other runs
        head = cast(nn.Module, build_recognizer(recipe).head)
        head.__class__ = FrozenTower
    train.run(recipe, run, head=head, catalog=catalog, resume=True, quiet=True)
    recipe, recognizer = load_run(Run(run))
    protocol = Protocol(split="val", episodes=options.episodes)
    states = encode(recognizer, recipe, catalog, protocol, progress=False)
    texts = TextOptions().encode(recipe, states.catalog.class_names, text_lora_of(recognizer))
    by_text = FewShotRecognizer(recognizer.encoder, TextFusion(None, texts)).eval()
    states_of_text = with_class_texts(encode(by_text, recipe, catalog, protocol, progress=False), texts)
    found = {
        "clips": evaluate_tasks(recognizer, recipe, states, protocol, progress=False)["accuracy"],
        "text": evaluate_tasks(by_text, recipe, states_of_text, protocol, progress=False)["accuracy"],
    }
    return found, num_trained(recognizer, recipe)


def main(argv: list[str] | None = None) -> None:
    """Train and compare all runs and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    catalog, results = captioned(build_catalog(recipe_of(options, None).data)), dict[str, dict[str, object]]()
    found: dict[str, dict[str, Evaluation]] = {}
    for name in (FROZEN, TASK_LOSS, LORA):
        found[name], num = evaluations(name, catalog, options)
        results[name] = {kind: as_json(one.accuracy) for kind, one in found[name].items()}
        if name != TASK_LOSS:  # the files of this run have a LoRA that is not trained
            results[name]["trained_parameters"] = num
        print(name, results[name], flush=True)
    report = {
        "environment": {key: value for key, value in environment().items() if key != "command"},
        "classes": {split: list(catalog.split(split).class_names) for split in ("train", "val")},
        "options": {"rank": options.rank, "steps": options.steps, "learning_rate": options.learning_rate},
        "episodes": options.episodes,
        "results": results,
        **{
            f"LoRA - {name}": {
                kind: as_json(paired_difference(found[LORA][kind], one)) for kind, one in found[name].items()
            }
            for name in (FROZEN, TASK_LOSS)
        },
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
