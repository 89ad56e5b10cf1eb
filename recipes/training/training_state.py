"""State of a training, saved to and restored from checkpoints.

Episodes, augmentation, dropout and schedule are functions of the seed and the step. So a checkpoint holds the trained
parameters, the optimizer's moments, the moving average, the loss scale, the best validation and the step, which
resumes bit-identically.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.two_pass.two_pass import TwoPass
from dmgal.errors import DmgalError
from dmgal.recipes.run.checkpoints import Checkpoint, Checkpoints
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.folder import Run, writing
from dmgal.recipes.run.weights import (
    clean_up_best,
    gather_shards,
    load_optimizer_state,
    load_trained_state,
    optimizer_state,
    shard_all_like,
    trained_state,
)
from dmgal.recipes.training.optimization import BadLosses, MovingAverage
from dmgal.recipes.training.tasks import Selection

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Number of finished steps, and the time they took."""

    step: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


class TrainingState:
    """Everything that changes during a training.

    Args:
        optimizer: the recognizer's optimizer, not wrapped by Accelerate.
        validation_tasks: hash of the validation tasks.
        last_step: step at which the training ends. None: that of the recipe.

    Attributes:
        average: moving average of the weights, or None. Set by the trainer, like ``two_pass``.
        two_pass: two-pass training, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        recognizer: FewShotRecognizer,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        validation_tasks: str,
        last_step: int | None = None,
    ) -> None:
        self._recipe, self._run, self._accelerator = recipe, run, accelerator
        self._recognizer, self.optimizer = recognizer, optimizer
        self.progress = Progress()
        self.selection = Selection(tasks=validation_tasks)
        self.bad_losses = BadLosses(recipe.train, math.log(recipe.episode.n_way))
        self.average: MovingAverage | None = None
        self.two_pass: TwoPass | None = None
        self._checkpoints = Checkpoints(run.checkpoints, recipe.train.keep_checkpoints)
        self._saved_step: int | None = None
        self.last_step = recipe.train.steps if last_step is None else last_step

    def clean_up(self) -> None:
        """Delete what a killed run has left behind. Only the main process may call this."""
        with writing(self._run.folder):
            clean_up_best(self._run)
            self._checkpoints.clean_up()

    def save(self) -> None:
        """Save a checkpoint. Every process must call this."""
        tensors = {"model": trained_state(self._recognizer)}
        if not self.is_under_deepspeed:
            tensors["optimizer"] = optimizer_state(self.optimizer, self._recognizer)
        if self.average is not None:
            tensors["average"] = {name: gather_shards(value) for name, value in self.average.values.items()}
        if self._accelerator.is_main_process:
            with writing(self._run.folder):
                self._checkpoints.save(self.progress.step, tensors, self._as_json())
        self._saved_step = self.progress.step

    def amend(self) -> None:
        """Add the latest validation to the checkpoint of this step."""
        if self.progress.step:
            self._checkpoints.amend(self.progress.step, self._as_json())

    def restore(self) -> int:
        """Load the newest checkpoint, if any, and return the step of its last validation, or -1."""
        checkpoint, last_validation = self._checkpoints.newest(), -1
        if checkpoint is not None:
            try:
                self._load_tensors(checkpoint)
                last_validation = self._load_progress(checkpoint.progress)
                if checkpoint.step != self.progress.step:
                    raise ValueError(f"progress of step {self.progress.step}")
            except DmgalError:
                raise
            except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                raise DmgalError(
                    "This checkpoint has wrong values.",
                    received=f"{checkpoint.folder}: {type(error).__name__}: {error}",
                    expected="a checkpoint that dmgal train wrote",
                    remedy="Copy the run again, or delete this checkpoint to resume from an earlier one.",
                ) from error
            self._saved_step = self.progress.step
        self._check_shared_folder()
        return last_validation

    def describe_saved(self) -> str:
        """Describe from which step the run would resume if it ended now."""
        if self.is_under_deepspeed:
            return "this run cannot be resumed"
        if self._saved_step is None:
            return "nothing is saved yet, and the same command with --resume starts from the beginning"
        return f"saved at step {self._saved_step}, from where the same command with --resume continues"

    @property
    def is_doubtful(self) -> bool:
        """True after a bad step before the last one. The weights may be the cause, so they are not saved."""
        return self.bad_losses.in_row > 0 and self.progress.step < self.last_step

    @property
    def is_under_deepspeed(self) -> bool:
        """True under DeepSpeed. Its optimizers hold flat partitions, whose states match no parameter of the model."""
        return bool(self._accelerator.distributed_type == DistributedType.DEEPSPEED)

    def _as_json(self) -> dict[str, object]:
        scaler = self._accelerator.scaler
        return {
            "progress": asdict(self.progress),
            "selection": asdict(self.selection),
            "bad_losses": {name: getattr(self.bad_losses, name) for name in ("in_row", "total", "recent")},
            "optimizer": self._recipe.train.optimizer,
            "loss_scale": scaler.state_dict() if scaler is not None else None,
            "two_pass": self.two_pass.choice if self.two_pass is not None else None,
        }

    def _load_tensors(self, checkpoint: Checkpoint) -> None:
        if self.is_under_deepspeed or "optimizer" not in checkpoint.tensors:
            raise _cannot_resume(checkpoint)
        load_trained_state(self._recognizer, checkpoint.tensors["model"], checkpoint.folder)
        old_optimizer, optimizer = checkpoint.progress["optimizer"], self._recipe.train.optimizer
        if old_optimizer == optimizer:
            load_optimizer_state(self.optimizer, self._recognizer, checkpoint.tensors["optimizer"])
        else:
            logger.info("%s cannot use the saved state of %s and starts without state", optimizer, old_optimizer)
        if self.average is not None:
            average = checkpoint.tensors.get("average", checkpoint.tensors["model"])
            self.average.load(shard_all_like(average, self.average.values))

    def _load_progress(self, saved: dict[str, Any]) -> int:
        _assign(self.progress, saved["progress"])
        _assign(self.bad_losses, saved["bad_losses"])
        tasks, selection = self.selection.tasks, saved["selection"]
        if selection.get("tasks", "") in ("", tasks):
            _assign(self.selection, {**selection, "tasks": tasks})
        else:
            logger.info("the validation tasks have changed, so the best weights are selected again")
        if self._accelerator.scaler is not None and saved["loss_scale"]:
            self._accelerator.scaler.load_state_dict(saved["loss_scale"])
        if self.two_pass is not None:
            self.two_pass.take_up(saved.get("two_pass"))
        return self.selection.step if selection.get("tasks", "") in ("", tasks) else int(selection["step"])

    def _check_shared_folder(self) -> None:
        """Raise an error if processes, each of which reads the checkpoint itself, see different folders."""
        step = torch.tensor([self.progress.step], device=self._accelerator.device)
        steps = sorted(set(self._accelerator.gather(step).tolist()))
        if len(steps) > 1:
            raise DmgalError(
                "The processes do not see the same run folder.",
                received=f"newest checkpoints at steps {steps}",
                expected="one folder that all machines share",
                remedy="Put --out on a shared disk.",
            )


def _assign(target: object, values: dict[str, object]) -> None:
    """Set attributes. Raise an AttributeError or a TypeError for a name or kind of value that the target lacks."""
    for name, value in values.items():
        if not _is_like(value, getattr(target, name)):
            raise TypeError(f"{name}: {value!r}"[:100])
        setattr(target, name, value)


def _is_like(value: object, current: object) -> bool:
    """Return True if a value read from a file can replace the current one. None stands for a number to come."""
    if isinstance(current, list):
        return isinstance(value, list) and all(_is_like(one, 0.0) for one in value)
    if isinstance(current, bool | str):
        return type(value) is type(current)
    if isinstance(current, int):
        return type(value) is int and -1 <= value < 2**63
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return is_number or (value is None and current is None)


def _cannot_resume(checkpoint: Checkpoint) -> DmgalError:
    missing = "" if "optimizer" in checkpoint.tensors else ", without the state of its optimizer, as under DeepSpeed"
    return DmgalError(
        "A run cannot be resumed under DeepSpeed, or if it started there.",
        received=f"--resume of {checkpoint.folder}{missing}",
        expected="a run that starts and resumes with DDP, FSDP or one process",
        remedy="Train from the beginning. Use recipes/configs/launch/fsdp.yaml if the run may be stopped.",
    )
