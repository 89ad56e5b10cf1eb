"""Training on episodes of the base classes, with model selection on the validation classes only.

    dmgal train method/dmgal_adapter data/moving_shapes --shots 1 --out runs/mine
    accelerate launch -m dmgal.recipes.train method/dmgal_adapter data/moving_shapes
    torchrun --nproc_per_node 2 -m dmgal.recipes.train method/dmgal_adapter data/moving_shapes --train.tasks-per-step 2

If the data have fewer validation classes than a task has ways, classes are left out in turn instead (docs/training.md).

Flags override layers, and layers override defaults. --resume continues a stopped or killed run, bit-identical on CPUs.
After SIGTERM or SIGUSR1 a training saves a checkpoint within a step and exits with code 75. Run the same command again
with --resume. torchrun and accelerate launch replace this exit code by their own.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from dmgal.recipes.run.build import build_recognizer, with_base_classes
from dmgal.recipes.run.cli_errors import as_description, run_recipe
from dmgal.recipes.run.config import Recipe, parse
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.layers import layer_list
from dmgal.recipes.run.text import give_texts
from dmgal.recipes.training.folds import Training, iterate_trainings
from dmgal.recipes.training.launching import make_accelerator, start_line, warn_of_launcher
from dmgal.recipes.training.signals import Preempted, StopSignal
from dmgal.recipes.training.tasks import warn_of_few_classes
from dmgal.recipes.training.tracking import check_tracker
from dmgal.recipes.training.trainer import Trainer
from dmgal.videos import VideoCatalog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Train:
    """Options of the command in addition to the recipe."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    out: Path | None = None
    """Run folder. None: runs/ and the names of the layers."""
    resume: bool = False
    """Continue the run in the folder if there is one."""
    accept_changes: bool = False
    """With --resume: continue although the recipe or the class split differs from that of the run."""
    list: bool = False
    """Print the bundled layers and the folder of the launch files, and exit."""
    quiet: bool = False
    """Hide progress bars."""


def run(
    recipe: Recipe,
    out: Path,
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    catalog: VideoCatalog | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    quiet: bool = False,
    trackers: Sequence[object] = (),
) -> Run:
    """Train by a recipe into a run folder.

    Args:
        recipe: all settings of the run.
        out: the run folder.
        backbone: replaces that of the recipe.
        head: replaces that of the recipe.
        catalog: replaces the data of the recipe.
        resume: continue the run in the folder, see `Train`.
        accept_changes: see `Train`.
        quiet: show no progress.
        trackers: instances of Accelerate's ``GeneralTracker`` that also receive the log.

    Raises:
        DmgalError: the arguments do not fit together, the folder cannot be used, or training diverged.
        Preempted: a ``SystemExit`` with code 75, after SIGTERM or SIGUSR1.
    """
    with StopSignal() as stop:
        set_seed(recipe.train.seed)
        check_tracker(recipe)
        catalog = build_catalog(recipe.data, progress=not quiet) if catalog is None else catalog
        for training in iterate_trainings(recipe, catalog, out):  # several if classes are left out in turn
            set_seed(recipe.train.seed)
            given = (backbone, head, trackers) if training.is_full else (*copy.deepcopy((backbone, head)), ())
            _train(_make_trainer(training, stop, quiet, *given), resume, accept_changes)
    return Run(out)


def _make_trainer(
    training: Training,
    stop: StopSignal,
    quiet: bool,
    backbone: nn.Module | None,
    head: nn.Module | None,
    trackers: Sequence[object],
) -> Trainer:
    """Build the model of a training, for which ``backbone`` and ``head`` may be given, and its trainer."""
    recipe = with_base_classes(training.recipe, training.catalog) if head is None else training.recipe
    recognizer = build_recognizer(recipe, backbone=backbone, head=head)
    give_texts(recognizer, recipe, training.catalog)
    accelerator = make_accelerator(recipe, training.folder, trackers)
    return Trainer(replace(training, recipe=recipe), recognizer, accelerator, stop, quiet)


def _train(trainer: Trainer, resume: bool, accept_changes: bool) -> None:
    """Start or resume the folder of a training, and train until the last step."""
    training, recipe, folder, accelerator = trainer.training, trainer.recipe, trainer.run, trainer.accelerator
    with folder.locked() if trainer.main else nullcontext():
        changes = {}
        if trainer.main:
            changes = folder.start(recipe, resume, accept_changes, training.catalog, own_split=training.leaves_out)
        if trainer.main and training.is_full:
            warn_of_few_classes(recipe, training.catalog.split("train"))
        accelerator.wait_for_everyone()
        warn_of_launcher(accelerator, recipe)
        trainer.prepare(resume)
        logger.info(start_line(accelerator, recipe, trainer.recognizer))
        if changes:
            trainer.tracking.note(trainer.progress.step, recipe_changes=changes)
        with trainer.explained_end():
            if recipe.train.steps:
                trainer.fit()  # validates, and saves checkpoints and the best weights
            elif trainer.selection.best is None:
                trainer.validate()
        trainer.release()
        accelerator.end_training()


def main(argv: list[str] | None = None) -> int | None:
    """Train by the recipe of the command line."""
    options, names = parse(argv, prog="dmgal train", description=as_description(__doc__), wrapper=Train)
    if options.list:
        print(layer_list())
        return 0
    out = options.out or Path("runs") / "_".join(Path(name).stem for name in names or ["default"])
    try:
        folder = run(
            options.recipe, out, resume=options.resume, accept_changes=options.accept_changes, quiet=options.quiet
        )
    except Preempted as preempted:
        return int(str(preempted.code))
    PartialState().print(f"run folder: {folder.folder}\nnext: dmgal evaluate {folder.folder}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
