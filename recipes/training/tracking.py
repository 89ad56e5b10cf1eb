"""Log of a training: JSON lines, a progress bar, and optionally a tracker through Accelerate.

Only the main process writes.
"""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator

from dmgal.episodes.evaluation import Estimate
from dmgal.errors import DmgalError
from dmgal.progress import progress_bar
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.folder import Run, peak_memory_mb
from dmgal.recipes.run.layers import flat, set_apart, to_mapping

logger = logging.getLogger(__name__)
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def check_tracker(recipe: Recipe) -> None:
    """Raise a DmgalError if the recipe's tracker is not installed."""
    tracker = recipe.train.tracker
    if tracker is None or any(find_spec(package) for package in PACKAGES[tracker]):
        return
    raise DmgalError(
        "This tracker is not installed.",
        received=f"train.tracker: {tracker}",
        expected=f"the package {PACKAGES[tracker][0]}",
        remedy=f"Run 'pip install {PACKAGES[tracker][0]}', or remove train.tracker. log.jsonl has the same values.",
    )


class Tracking:
    """Log, progress bar and trackers of one training. Use it as a context."""

    def __init__(self, recipe: Recipe, run: Run, accelerator: Accelerator, quiet: bool) -> None:
        self._recipe, self._run, self._accelerator = recipe, run, accelerator
        self._main = accelerator.is_main_process
        self._quiet = quiet or not self._main
        self._bar: Any = None

    def start(self, step: int) -> None:
        """Open the bar and the trackers for a training that starts or resumes at a step."""
        train = self._recipe.train
        self._bar = progress_bar(
            progress=not self._quiet,
            total=train.steps * train.tasks_per_step,
            initial=step * train.tasks_per_step,
            desc="train",
            unit="episode",
        )
        if self._accelerator.log_with:
            shared, _ = set_apart(to_mapping(self._recipe))
            config = {key: value if isinstance(value, (int, float)) else str(value) for key, value in flat(shared)}
            self._accelerator.init_trackers("dmgal", config=config, init_kwargs=self._options())

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, step: int, entry: dict[str, Any], seconds: float, data_seconds: float) -> None:
        """Log a step: ``loss``, ``losses`` by name, ``accuracy``, ``gradient_norm``, and the total seconds so far."""
        if not self._main:
            return
        memory = peak_memory_mb()
        times = {"seconds": round(seconds, 3), "data_seconds": round(data_seconds, 3)}
        self._log(step, **entry, **times, peak_memory_mb=memory)
        if self._bar is not None:
            losses = entry["losses"] if len(entry["losses"]) > 1 else {}
            self._bar.set_postfix(
                loss=f"{entry['loss']:.3f}",
                **{name: f"{value:.3f}" for name, value in losses.items()},
                accuracy=f"{100 * entry['accuracy']:.0f} %",
                data=f"{100 * data_seconds / max(seconds + data_seconds, 1e-9):.0f} %",
                memory=f"{memory / 1024:.1f} GB",
                refresh=False,
            )
            self._bar.update(self._recipe.train.tasks_per_step)

    def bad_step(self, step: int, problem: str, in_row: int, most: int) -> None:
        """Log a step that was skipped."""
        if not self._main:
            return
        self._log(step, bad_step=problem, bad_steps_in_a_row=in_row)
        message = "step %d: %s, so the step is skipped (%d in a row, %d end the run)"
        logger.info(message, step, problem, in_row, most)
        if self._bar is not None:
            self._bar.update(self._recipe.train.tasks_per_step)

    def validation(self, step: int, result: Estimate) -> None:
        """Log the accuracy on the validation classes."""
        if self._main:
            width = {"half_width": result.half_width} if math.isfinite(result.half_width) else {}
            self._log(step, validation_accuracy=result.mean, **width)

    def note(self, step: int, **entry: object) -> None:
        """Log other values."""
        if self._main:
            self._run.log(step=step, **entry)

    def _log(self, step: int, **entry: object) -> None:
        self._run.log(step=step, **entry)
        if self._accelerator.trackers:
            numbers = {key: value for key, value in flat(entry) if isinstance(value, (int, float))}
            self._accelerator.log(numbers, step=step)

    def _options(self) -> dict[str, Any]:
        """Return options with which trackers continue a resumed run: wandb by its id, trackio by its name."""
        name, key = self._run.folder.resolve().name, self._run.tracker_id()
        unique_name = name if key is None else f"{name}-{key}"  # older runs have no id
        return {
            "wandb": {"name": name, "id": key or name, "resume": "allow"},
            "trackio": {"name": unique_name, "resume": "allow"},
        }
