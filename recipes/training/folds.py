"""Validation by leaving classes out, for data whose validation classes are too few for a task.

The base and validation classes are dealt into folds. The run ``folds/N`` trains on all of them but those of fold ``N``,
on which it is validated. The mean over the folds chooses the last step, which may be 0 for a continued adapter. Then
the training on all classes ends at that step, with the learning rates that the folds had until there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import torch
from accelerate import Accelerator

from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.data import split_of
from dmgal.recipes.run.folder import Run
from dmgal.recipes.training.launching import requested_processes
from dmgal.recipes.training.tasks import Accuracies, Selection, Validation
from dmgal.videos import VideoCatalog

logger = logging.getLogger(__name__)
MOST_FOLDS = 3
LEAST_WAYS = 2


def iterate_trainings(recipe: Recipe, catalog: VideoCatalog, out: Path) -> Iterator[Training]:
    """Yield the trainings of a run: one on all base classes, and the folds before it if these have to validate it.

    A training must be finished when the next one is asked for. See `leave_classes_out` for errors.
    """
    if not has_too_few_to_validate(recipe, catalog):
        yield FullTraining(recipe, catalog, out)
        return
    catalog, folds = leave_classes_out(recipe, catalog, out)
    yield from folds
    yield FullTraining(recipe, catalog, out, ChosenStep.by(folds))


def has_too_few_to_validate(recipe: Recipe, catalog: VideoCatalog) -> bool:
    """Return True if there are base classes to train on, but fewer validation classes than ways."""
    splits = catalog.class_splits or ()
    return recipe.train.steps > 0 and "train" in splits and splits.count("val") < recipe.episode.n_way


@dataclass(frozen=True)
class Fold:
    """A training without some of the classes.

    Attributes:
        recipe: settings of the run, with fewer ways if fewer classes remain.
        catalog: the remaining classes in the split "train", and the others in "val".
        val_ways: ways of a validation task.
        folder: folder of the run.
    """

    recipe: Recipe
    catalog: VideoCatalog
    val_ways: int
    folder: Path
    is_full = False
    leaves_out = True

    def validation(self, recognizer: FewShotRecognizer, accelerator: Accelerator, progress: bool) -> Validation:
        """Return the validation on the classes of the fold, which logs the accuracies of tasks and classes."""
        recipe = replace(self.recipe, episode=replace(self.recipe.episode, n_way=self.val_ways))
        validation = _LoggedValidation(recipe, self.catalog.split("val"), recognizer, accelerator, progress)
        validation.run = Run(self.folder)
        return validation


def leave_classes_out(recipe: Recipe, catalog: VideoCatalog, out: Path) -> tuple[VideoCatalog, list[Fold]]:
    """Return the catalog with all validation classes as base classes, and two or three folds of these.

    The folds stop neither early nor report to the recipe's tracker. No fold sees a test class.

    Raises:
        DmgalError: fewer than four classes, impossible tasks, or several processes.
    """
    splits, episode = split_of(catalog), recipe.episode
    catalog = catalog.with_split({name: split.replace("val", "train") for name, split in splits.items()})
    base, num_val = catalog.split("train"), [*splits.values()].count("val")
    _check(recipe, base, num_val)
    left_out = _dealt(base, recipe.data.seed)
    sizes, count = sorted(map(len, left_out)), len(base.class_names)
    logger.info(
        "too few validation classes (%d) for tasks of %d ways: each of %d classes is left out by one of %d runs in the "
        "folder folds, which choose the last step of the training on all of these classes",
        *(num_val, episode.n_way, count, len(left_out)),
    )
    fold_recipe = replace(
        recipe,
        episode=replace(episode, n_way=min(episode.n_way, count - sizes[-1])),
        train=replace(recipe.train, patience=None, tracker=None),
    )
    known, val_ways = split_of(base), min(episode.n_way, sizes[0])
    return catalog, [
        Fold(fold_recipe, base.with_split(known | dict.fromkeys(names, "val")), val_ways, out / "folds" / str(number))
        for number, names in enumerate(left_out, start=1)
    ]


def _check(recipe: Recipe, base: VideoCatalog, num_val: int) -> None:
    """Raise a DmgalError if the classes cannot be left out in turn, or not be trained on together."""
    episode, count, processes = recipe.episode, len(base.class_names), requested_processes()
    if count < 2 * LEAST_WAYS:
        raise DmgalError(
            "There are too few classes to leave any out for validation.",
            received=f"{count} base and validation classes",
            expected=f"at least {2 * LEAST_WAYS}: {LEAST_WAYS} to train on while {LEAST_WAYS} are left out",
            remedy="Add classes. dmgal enroll learns any number of classes without training.",
        )
    if processes > 1:
        raise DmgalError(
            "Only a single process can leave classes out for validation.",
            received=f"{num_val} validation classes for tasks of {episode.n_way} ways, and {processes} processes",
            expected="one process, or at least as many validation classes as ways",
            remedy="Start one process, or lower --ways.",
        )
    tasks = episode.k_shot, episode.n_query, 1, recipe.train.seed
    EpisodeSampler(base.labels, episode.n_way, *tasks, base.class_names, base.groups)


def _dealt(catalog: VideoCatalog, seed: int) -> list[list[str]]:
    """Return the names of each fold's classes, drawn by the seed. A class and its reversal are in the same fold."""
    paired = {c for pair in catalog.reversal_pairs for c in pair}
    groups = [*catalog.reversal_pairs, *((c,) for c in range(len(catalog.class_names)) if c not in paired)]
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    folds: list[list[str]] = [[] for _ in range(min(MOST_FOLDS, len(catalog.class_names) // LEAST_WAYS))]
    for group in sorted((groups[index] for index in order), key=len, reverse=True):  # pairs first, for even sizes
        min(folds, key=len).extend(catalog.class_names[c] for c in group)
    return folds


class _LoggedValidation(Validation):
    """A validation that also logs the accuracies of tasks and classes."""

    run: Run

    def accuracies(self, step: int) -> Accuracies:
        accuracies = super().accuracies(step)
        tasks, classes = (part.tolist() for part in accuracies)
        self.run.log(step=step, task_accuracies=tasks, class_accuracies=classes)
        return accuracies


@dataclass(frozen=True)
class ChosenStep:
    """The last step of a training on all classes, which takes the place of its validations.

    Attributes:
        only_step: the step. 0: keep the start.
        tasks_hash: hash of the accuracies of all folds.
    """

    only_step: int
    tasks_hash: str
    _accuracies: Accuracies

    @classmethod
    def by(cls, folds: Sequence[Fold]) -> ChosenStep:
        """Choose the step by the finished runs of all folds, as a run chooses its best weights.

        A step that a fold did not validate, because of a bad loss, is no candidate.
        """
        found = [_logged_accuracies(Run(fold.folder)) for fold in folds]
        selection, chosen = Selection(), 0
        for step in sorted(set.intersection(*(set(of_fold) for of_fold in found))):
            parts = zip(*(of_fold[step] for of_fold in found), strict=True)
            better, line = selection.take(step, Accuracies(*(_pooled(part) for part in parts)))
            chosen = step if better else chosen
            logger.info("all folds: %s", line)
        logger.info("the training on all classes ends at step %d", chosen)
        digest = blake2b(repr([sorted(of_fold.items()) for of_fold in found]).encode(), digest_size=8)
        best = Accuracies(_pooled([selection.accuracies]), _pooled([selection.by_class]))
        return cls(chosen, digest.hexdigest(), best)

    def accuracies(self, step: int) -> Accuracies:
        """Return the accuracies of all folds at the chosen step."""
        return self._accuracies

    def report_skipped(self) -> None:
        """Report nothing, because this training reads no validation video."""


@dataclass(frozen=True)
class FullTraining:
    """The training on all base classes.

    Attributes:
        recipe, catalog, folder: settings, data and folder of the run.
        chosen: last step that folds have chosen, or None to validate on the validation classes.
    """

    recipe: Recipe
    catalog: VideoCatalog
    folder: Path
    chosen: ChosenStep | None = None
    is_full = True

    @property
    def leaves_out(self) -> bool:
        """True if classes were left out in turn."""
        return self.chosen is not None

    def validation(
        self, recognizer: FewShotRecognizer, accelerator: Accelerator, progress: bool
    ) -> Validation | ChosenStep:
        """Return the validation on the validation classes, or the choice of the folds."""
        if self.chosen is not None:
            return self.chosen
        return Validation(self.recipe, self.catalog.split("val"), recognizer, accelerator, progress)


Training = Fold | FullTraining
"""A training of a run."""


def _logged_accuracies(run: Run) -> Mapping[int, tuple[list[float], list[float]]]:
    """Return the accuracies of tasks and classes by step. If a kill made the run repeat one, the last counts."""
    entries = [entry for entry in run.log_entries() if "task_accuracies" in entry]
    return {entry["step"]: (entry["task_accuracies"], entry.get("class_accuracies", [])) for entry in entries}


def _pooled(parts: Sequence[list[float]]) -> torch.Tensor:
    return torch.tensor([value for part in parts for value in part], dtype=torch.float64)
