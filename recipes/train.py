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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from dmgal.errors import DmgalError, first_line
from dmgal.recipes.run.build import build_recognizer, with_base_classes
from dmgal.recipes.run.cli_errors import as_description, run_recipe
from dmgal.recipes.run.config import Recipe, parse
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.layers import bundled_layers
from dmgal.recipes.run.text import give_texts
from dmgal.recipes.training.folds import ChosenStep, Fold, has_too_few_to_validate, leave_classes_out
from dmgal.recipes.training.launching import make_accelerator, start_line, warn_of_launcher
from dmgal.recipes.training.signals import Preempted, StopSignal
from dmgal.recipes.training.tasks import warn_of_few_classes
from dmgal.recipes.training.tracking import check_tracker
from dmgal.recipes.training.trainer import Trainer
from dmgal.videos import VideoCatalog


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
    trackers: Sequence[Any] = (),
) -> Run:
    """Train by a recipe into a run folder.

    Args:
        recipe, out: all settings of the run, and its folder.
        backbone, head, catalog: replace those of the recipe.
        resume, accept_changes, quiet: see the options of the command.
        trackers: instances of Accelerate's ``GeneralTracker`` that also receive the log.

    Raises:
        DmgalError: the arguments do not fit together, the folder cannot be used, or training diverged.
        Preempted: a ``SystemExit`` with code 75, after SIGTERM or SIGUSR1.
    """
    with StopSignal() as stop:
        given = _Given(backbone, head, stop, trackers, resume, accept_changes, quiet)
        set_seed(recipe.train.seed)
        check_tracker(recipe)
        catalog = build_catalog(recipe.data, progress=not quiet) if catalog is None else catalog
        if not has_too_few_to_validate(recipe, catalog):
            return _train(recipe, out, catalog, given)
        catalog, folds = leave_classes_out(recipe, catalog, out)
        for fold in folds:
            _train(fold.recipe, fold.folder, fold.catalog, given.copy(), fold)
        return _train(recipe, out, catalog, given, ChosenStep.by(folds))


@dataclass(frozen=True)
class _Given:
    """Arguments of `run` that all its trainings share."""

    backbone: nn.Module | None
    head: nn.Module | None
    stop: StopSignal
    trackers: Sequence[Any]
    resume: bool
    accept_changes: bool
    quiet: bool

    def copy(self) -> _Given:
        """Return copies of backbone and head, for a training beside the main one, which no tracker follows."""
        backbone, head = copy.deepcopy((self.backbone, self.head))
        return replace(self, backbone=backbone, head=head, trackers=())


def _train(
    recipe: Recipe, out: Path, catalog: VideoCatalog, given: _Given, part: Fold | ChosenStep | None = None
) -> Run:
    """Train on a catalog. ``part`` is the training's part in leaving classes out for validation, if they are."""
    folder = Run(out)
    with ExitStack() as locks:
        if part is not None:
            set_seed(recipe.train.seed)  # again, because the trainings before have drawn
        recipe = with_base_classes(recipe, catalog) if given.head is None else recipe
        recognizer = build_recognizer(recipe, backbone=given.backbone, head=given.head)
        give_texts(recognizer, recipe, catalog)
        accelerator = make_accelerator(recipe, out, given.trackers)
        validation = part.validation(recognizer, accelerator, not given.quiet) if isinstance(part, Fold) else part
        trainer = Trainer(recipe, folder, recognizer, catalog, accelerator, given.stop, given.quiet, validation)
        changes = {}
        if trainer.main:
            locks.enter_context(folder.locked())
            changes = folder.start(recipe, given.resume, given.accept_changes, catalog, own_split=part is not None)
            if not isinstance(part, Fold):
                warn_of_few_classes(recipe, catalog.split("train"))
        accelerator.wait_for_everyone()
        warn_of_launcher(accelerator, recipe)
        trainer.prepare(given.resume)
        trainer.tracking.say(start_line(accelerator, recipe, recognizer))
        if changes:
            trainer.tracking.note(trainer.progress.step, recipe_changes=changes)
        with _explained_end(trainer, out):
            if recipe.train.steps:
                trainer.fit()  # validates, and saves checkpoints and the best weights
            elif trainer.selection.best is None:
                trainer.validate()
        trainer.release()
        accelerator.end_training()
    return folder


@contextmanager
def _explained_end(trainer: Trainer, out: Path) -> Iterator[None]:
    """Add what is saved, or what needs less memory, to whatever ends the training early."""
    try:
        yield
    except Preempted as preempted:
        trainer.tracking.say(f"{preempted.name}: {trainer.what_is_saved()} ({out})")
        raise
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt(f"{trainer.what_is_saved()} ({out})") from interruption
    except torch.OutOfMemoryError as error:
        raise DmgalError(
            "The device is out of memory.",
            received=first_line(error),
            expected="memory for the activations of one pass, in addition to weights and optimizer state",
            remedy="Use --train.tasks-per-pass 1, --train.precision bf16, --backbone.checkpoint-blocks, "
            "or --train.two-pass auto, which needs the least memory.",
        ) from error


def main(argv: list[str] | None = None) -> int | None:
    """Train by the recipe of the command line."""
    options, names = parse(argv, prog="dmgal train", description=as_description(__doc__), wrapper=Train)
    if options.list:
        print("\n".join(bundled_layers()))
        print(f"\nfor accelerate launch --config_file, and for sbatch: {Path(__file__).parent / 'configs' / 'launch'}")
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
