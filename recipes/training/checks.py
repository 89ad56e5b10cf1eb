"""Checks of a recipe against its model and launcher, before a training starts."""

from __future__ import annotations

import math

from accelerate import Accelerator
from accelerate.utils import DistributedType

from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import count_parameters
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.text_lora import learns_text
from dmgal.recipes.training.step import UNSHARDED


def check_training(recipe: Recipe, recognizer: FewShotRecognizer, accelerator: Accelerator) -> None:
    """Raise a DmgalError if nothing would be trained, or if the recipe does not suit the processes or the head."""
    _check_division(recipe.train.tasks_per_step, accelerator.num_processes)
    _check_unquantized(recipe, accelerator)
    _check_unsharded_text_tower(recipe, accelerator)
    _check_something_trains(recipe, recognizer)
    _check_other_classes(recipe, recognizer)


def _check_division(tasks: int, world: int) -> None:
    if tasks % world:
        raise DmgalError(
            "The tasks of a step cannot be divided evenly among the processes.",
            received=f"tasks_per_step={tasks}, {world} processes",
            expected="a multiple of the number of processes",
            remedy=f"Pass --train.tasks-per-step {math.ceil(tasks / world) * world}.",
        )


def _check_unquantized(recipe: Recipe, accelerator: Accelerator) -> None:
    if recipe.backbone.quantize is not None and accelerator.distributed_type != DistributedType.NO:
        raise DmgalError(
            "A quantized backbone trains in one process.",
            received=f"backbone.quantize: {recipe.backbone.quantize} under {accelerator.distributed_type.value}",
            expected="one process, because launchers exchange and shard weights of floats only",
            remedy="Remove backbone.quantize, or start one process.",
        )


def _check_unsharded_text_tower(recipe: Recipe, accelerator: Accelerator) -> None:
    if recipe.text.lora is not None and accelerator.distributed_type not in UNSHARDED:
        raise DmgalError(
            "A text tower is trained with all its weights on every process.",
            received=f"text.lora: {recipe.text.lora} under {accelerator.distributed_type.value}",
            expected="one process, or several that hold all weights each (DDP)",
            remedy="Remove text.lora, or launch without FSDP and DeepSpeed.",
        )


def _check_something_trains(recipe: Recipe, recognizer: FewShotRecognizer) -> None:
    if recipe.train.steps and not count_parameters(recognizer, trained_only=True):
        raise DmgalError(
            "There is nothing to train.",
            received=f"train.steps={recipe.train.steps}, a frozen backbone, no adapter, and a head without parameters",
            expected="an adapter, a trainable backbone, a head with parameters, or no steps",
            remedy="Add a method such as method/dmgal_adapter, or pass --train.steps 0.",
        )


def _check_other_classes(recipe: Recipe, recognizer: FewShotRecognizer) -> None:
    names_classes = learns_text(recognizer) or "num_base_classes" in recipe.head
    if recipe.train.steps and recipe.data.motion_world is not None and names_classes:
        raise DmgalError(
            "This head knows the base classes, so tasks of other classes cannot be mixed in.",
            received=f"data.motion_world with the head {recipe.head.get('name')}",
            expected="a head that only compares the videos of a task",
            remedy="Remove data.motion_world, or choose another head, such as BiMHM.",
        )
