"""Gradient of a training step in two passes (see `TwoPass`), with the memory of a few videos for tasks of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from accelerate import Accelerator
from accelerate.utils import DistributedType

from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.little_memory.average_gradients import average_gradients
from dmgal.episodes.two_pass import TwoPass
from dmgal.errors import DmgalError
from dmgal.recipes.config import Recipe
from dmgal.recipes.training.optimization import task_loss
from dmgal.recipes.training.passes import Numbers, seed_everything

_UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_two_pass(
    recipe: Recipe, recognizer: FewShotRecognizer, accelerator: Accelerator, say: Callable[[str], object]
) -> TwoPass | None:
    """Return the two-pass training that the recipe asks for, or None.

    Raises:
        DmgalError: the launcher shards the weights. Only the forward pass of the full model would gather them.
    """
    train = recipe.train
    if train.two_pass == "no":
        return None
    if accelerator.distributed_type not in _UNSHARDED:
        raise DmgalError(
            "Two-pass training needs the whole weights on every process.",
            received=f"train.two_pass: {train.two_pass} under {accelerator.distributed_type.value}",
            expected="one process, or several with whole weights (DDP)",
            remedy="Remove train.two_pass, or launch without FSDP and DeepSpeed.",
        )
    return TwoPass(
        recognizer,
        None if train.two_pass == "auto" else train.two_pass,
        memory_budget=None if train.memory_budget is None else 1e9 * train.memory_budget,
        keep_products=not train.compile,  # the choice of tensors saved for backward needs single operations
        autocast=accelerator.autocast,
        notify=say,
    )


def two_pass_gradient(
    accelerator: Accelerator, two_pass: TwoPass, episodes: Sequence[Episode], weights: Mapping[str, float], seed: int
) -> Numbers:
    """Compute the gradient of a step over all processes and return this process's means, like ``step_gradient``."""
    seed_everything(seed)
    outputs = two_pass.backward(
        episodes,
        lambda output, episode: task_loss([output], [episode], weights)[0],
        None if accelerator.scaler is None else accelerator.scaler.scale,
    )
    average_gradients(two_pass.recognizer.parameters())
    loss, accuracy, terms = task_loss(outputs, list(episodes), weights)
    return {"loss": loss, "accuracy": accuracy, **terms}
