"""Plan of two-pass training: number of videos encoded at once, and results that are saved between the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

import torch.distributed as dist

from ...errors import DmgalError, first_line
from ..episode import Episode
from .memory import free_bytes, is_out_of_memory
from .recompute import Result, keeping, keeping_products, most_expensive

SHARE = 0.7
"""Share of the free memory that is used without a given budget."""
_MUTATION_TEXT = "has been mutated"


@dataclass(frozen=True)
class Plan:
    """A way to encode the videos of a task.

    Attributes:
        chunk: number of videos encoded at once.
        save_results: if False, everything is recomputed.
        positions: positions of the results saved between the passes. None: those of narrowing matrix products.
    """

    chunk: int
    save_results: bool
    positions: frozenset[int] | None = None

    def checkpoint_options(self) -> dict[str, Any]:
        """Return the arguments of torch's ``checkpoint`` that save the results of this plan."""
        if not self.save_results:
            return {}
        return {"context_fn": keeping_products if self.positions is None else keeping(self.positions)}


class Choice(TypedDict):
    """The numbers of a plan, which a checkpoint keeps."""

    chunk: int
    kept: list[int] | None
    of: list[object]
    """Options and task sizes that the plan is for."""


class VideoCost(NamedTuple):
    """Measured bytes of encoding one video, and its costly results.

    Attributes:
        state: bytes held between the passes.
        peak: bytes of forward and backward pass.
        results: the costly results of the encoding.
        trained: bytes of all trained parameters.
    """

    state: int
    peak: int
    results: Sequence[Result]
    trained: int


class Planner:
    """The choice of a `Plan` from the free memory, and its correction after errors.

    Args:
        chunk, memory_budget, keep_products, notify: see `TwoPass`.

    Attributes:
        plan: the current plan. None if memory has to be measured first.

    Raises:
        DmgalError: the chunk or the budget is too small.
    """

    def __init__(
        self, chunk: int | None, memory_budget: float | None, keep_products: bool, notify: Callable[[str], object]
    ) -> None:
        for name, value, minimum in (("chunk", chunk, 1), ("memory budget", memory_budget, 0)):
            if value is not None and not value >= minimum:
                raise DmgalError(
                    f"The {name} of two-pass training is too small.",
                    received=f"a {name} of {value}",
                    expected=f"at least {minimum}",
                    remedy=f"Increase the {name}, or omit it to have it measured.",
                )
        self.plan = None if chunk is None or memory_budget is not None else Plan(chunk, keep_products)
        self._options = (chunk, memory_budget, keep_products)
        self._task_sizes: list[int] = []
        self._previous_choice: Choice | None = None
        self._notify = notify

    @property
    def choice(self) -> Choice | None:
        """The plan as JSON values, with the options and task sizes that it is for. None without a plan."""
        if self.plan is None:
            return None
        positions = None if self.plan.positions is None else sorted(self.plan.positions)
        return {"chunk": self.plan.chunk, "kept": positions, "of": [*self._options, *self._task_sizes]}

    def take_up(self, choice: Choice | None) -> None:
        """Reuse a previous choice for equal task sizes and options."""
        self._previous_choice = choice

    def make(self, episode: Episode, measure: Callable[[], VideoCost]) -> Plan:
        """Return the plan. The first call divides the budget between a chunk and saved results.

        Args:
            episode: a task of the size that the plan is for.
            measure: returns the cost of one video of the task.
        """
        if self.plan is not None:
            return self.plan
        self._task_sizes = [num_videos(episode), *episode.support.shape[1:]]
        previous = self._previous_choice
        if previous is not None and previous["of"] == [*self._options, *self._task_sizes]:
            plan = self._adopt(previous)
            self._notify(f"Two-pass training: {plan.chunk} videos at once, as before.")
            return plan
        chunk, budget, keep_products = self._options
        cost, device, videos = measure(), episode.support.device, num_videos(episode)
        if budget is None:  # reserves memory for gradients and AdamW's two moments
            budget = SHARE * (free_bytes(device) - 3 * cost.trained)
        left = budget - videos * cost.state
        if chunk is None:
            if videos * cost.peak <= left:
                chunk_bytes: float = left
            elif device.type == "cpu":
                chunk_bytes = 0
            else:
                chunk_bytes = left / 2
            chunk = min(videos, max(1, int(chunk_bytes // max(cost.peak, 1))))
        left -= chunk * cost.peak
        recomputed_videos = videos - chunk
        results = cost.results if recomputed_videos > 0 else []
        self.plan = Plan(chunk, keep_products, most_expensive(results, max(left, 0) / max(recomputed_videos, 1)))
        choice = self.choice
        assert choice is not None
        plan = self._adopt(_least_of_all_processes(choice))
        self._log_plan(plan, videos, cost.peak, budget, results, suffices=left >= 0)
        return plan

    def change_after(self, error: Exception, episode: Episode) -> Plan:
        """Return a plan without the cause of an error that made a task fail, or raise the error."""
        plan = self.plan
        assert plan is not None
        if plan.save_results and _MUTATION_TEXT in str(error):
            self.plan = replace(plan, save_results=False)
            self._notify("Two-pass training: this model changes results in place, so everything is recomputed.")
            return self.plan
        if not is_out_of_memory(error):
            raise error
        chunk = min(plan.chunk, num_videos(episode))
        if chunk == 1 and plan.positions:
            self.plan = replace(plan, positions=frozenset())
            self._notify(f"Two-pass training: out of memory, continuing without saved results ({first_line(error)}).")
            return self.plan
        if chunk == 1:
            raise DmgalError(
                "The memory does not suffice for a task, even with one video encoded at a time.",
                received=f"{num_videos(episode)} videos of {tuple(episode.support.shape[1:])}; {first_line(error)}",
                expected="memory for encoding one video and for comparing the videos of one task",
                remedy="Use fewer frames, smaller images, fewer queries, or mixed precision.",
            ) from error
        self.plan = replace(plan, chunk=chunk // 2)
        self._notify(
            f"Two-pass training: out of memory with {chunk} videos at once, continuing with {self.plan.chunk} "
            f"({first_line(error)})."
        )
        return self.plan

    def _adopt(self, choice: Choice) -> Plan:
        positions = None if choice["kept"] is None else frozenset(choice["kept"])
        self.plan = Plan(choice["chunk"], self._options[2], positions)
        return self.plan

    def _log_plan(
        self, plan: Plan, videos: int, peak: int, budget: float, results: Sequence[Result], suffices: bool
    ) -> None:
        message = (
            f"Two-pass training ({peak / 1e6:,.0f} MB to encode a video): of {videos} videos a task, "
            f"{min(plan.chunk, videos)} at once in {budget / 1e9:,.2f} GB"
        )
        if not suffices:
            message += ", although one needs more"
        if plan.positions:
            saved = [result for result in results if result.position in plan.positions]
            saved_share = sum(result.operations for result in saved) / max(sum(r.operations for r in results), 1)
            size = sum(result.size for result in saved)
            message += f". Saving {size / 1e6:,.0f} MB of results per video, so {saved_share:.0%} less is recomputed"
        self._notify(f"{message}.")


def num_videos(episode: Episode) -> int:
    """Return the number of support and query videos of a task."""
    return episode.num_support + episode.num_query


def _least_of_all_processes(choice: Choice) -> Choice:
    """Return the `TwoPass` choice that needs the least memory among all processes. Every process must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return choice
    choices: list[Choice] = [choice] * dist.get_world_size()
    dist.all_gather_object(choices, choice)
    return min(choices, key=lambda candidate: (candidate["chunk"], len(candidate["kept"] or ())))
