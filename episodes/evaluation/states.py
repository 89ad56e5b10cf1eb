"""Per-video states, precomputed for use as support and as query, and tables of the scores of all pairs of videos.

Without a task layer, support and query states are the same: the head's state of the video. Task layers that do not
change the support (a Cmga) divide them: the support state then includes the head's part, and the query state ends
before the first task layer.

A head has pair scores if its logit for a class depends only on the query and on that class's support: ``"mean"`` over
the logits of the shots, or ``"one_shot"`` if this holds for one shot only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ...backbones.state import VideoState
from ...errors import DmgalError
from ...progress import progress_bar
from ..episode import EpisodeOutput
from ..heads.frame_distance import class_members
from ..recognizer import FewShotRecognizer

Compare = Callable[[VideoState, Tensor, VideoState], EpisodeOutput]
NORMALIZES_BATCHES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, eq=False)
class SupportStates:
    """States of videos for use as support.

    Attributes:
        state: support for ``head.compare``, or for ``recognizer.compare`` if ``attended`` is None.
        attended: for each task layer, the tensors that queries attend to. None without divided task layers.
    """

    state: VideoState
    attended: tuple[VideoState, ...] | None = None

    def select(self, videos: Tensor | slice) -> SupportStates:
        """Return the states of some videos, given by index tensor, mask or slice."""
        attended = self.attended and tuple(layer.select(videos) for layer in self.attended)
        return SupportStates(self.state.select(videos), attended)


@dataclass(frozen=True, eq=False)
class PrecomputedStates:
    """States of videos for use in any later task. Without divided task layers, both states are the same object."""

    support: SupportStates
    query: VideoState

    @staticmethod
    def undivided(state: VideoState) -> PrecomputedStates:
        """Return states that are the same for support and query, such as those of `FewShotRecognizer.encode`."""
        return PrecomputedStates(SupportStates(state), state)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> PrecomputedStates:
        """Return the states of `tensors`, for example as read from a file.

        Raises:
            ValueError: tensors of a layer are missing.
        """
        query = with_prefix(tensors, "query.")
        if not query:
            return PrecomputedStates.undivided(VideoState(tensors))
        attended = with_prefix(tensors, "support.attended.")
        numbers = {name.partition(".")[0] for name in attended}
        if numbers != {str(layer) for layer in range(len(numbers))}:
            raise ValueError(f"layers {', '.join(sorted(numbers))[:100]}")
        layers = tuple(with_prefix(attended, f"{layer}.") for layer in range(len(numbers)))
        return PrecomputedStates(SupportStates(with_prefix(tensors, "support.prepared."), layers), query)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, for example to write them to a file."""
        if self.support.attended is None:
            return dict(self.query)
        parts = {f"support.attended.{layer}.": state for layer, state in enumerate(self.support.attended)}
        parts |= {"support.prepared.": self.support.state, "query.": self.query}
        return {prefix + name: tensor for prefix, state in parts.items() for name, tensor in state.items()}

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        return self.query.num_videos

    def map(self, change: Callable[[Tensor], Tensor]) -> PrecomputedStates:
        """Return the states with each tensor replaced by ``change(tensor)``."""
        return self.from_tensors({name: change(tensor) for name, tensor in self.tensors().items()})

    def with_support(self, **tensors: Tensor) -> PrecomputedStates:
        """Return the states with more tensors that heads read from support videos, first dimension ``V``.

        Undivided states are one object, so queries have these tensors too.
        """
        state = VideoState(self.support.state, **tensors)
        if self.support.attended is None:
            return PrecomputedStates.undivided(state)
        return PrecomputedStates(SupportStates(state, self.support.attended), self.query)

    def select(self, videos: Tensor | slice) -> PrecomputedStates:
        """Return the states of some videos, given by index tensor, mask or slice."""
        return self.map(lambda tensor: tensor[videos])

    def to(self, *args: Any, **kwargs: Any) -> PrecomputedStates:
        """Convert or move all tensors, as ``Tensor.to``."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    @staticmethod
    def cat(states: Sequence[PrecomputedStates]) -> PrecomputedStates:
        """Concatenate the videos of several states."""
        return PrecomputedStates.from_tensors(VideoState.cat([VideoState(part.tensors()) for part in states]))


def precompute_states(recognizer: FewShotRecognizer, videos: Tensor) -> PrecomputedStates:
    """Encode videos ``(V, T, 3, H, W)`` into states that can be stored for later tasks, see `compare_tasks`."""
    state = recognizer.encode(videos)
    if not has_divided_task_layers(recognizer):
        return PrecomputedStates.undivided(state)
    encoder: Any = recognizer.encoder
    features, attended = encoder.support_side(state)
    return PrecomputedStates(SupportStates(recognizer.head.prepare(features), attended), encoder.query_side(state))


def states_to_keep(recognizer: FewShotRecognizer, videos: Tensor) -> PrecomputedStates:
    """Return what `precompute_states` does, on the CPU.

    Raises:
        DmgalError: a state is infinite or not a number. All its comparisons would be meaningless.
    """
    states = precompute_states(recognizer, videos).to("cpu")
    if any(not tensor.isfinite().all() for tensor in states.tensors().values() if tensor.is_floating_point()):
        raise DmgalError(
            "The model has no numbers for these clips.",
            received="states that are infinite or not a number",
            expected="finite states of all clips",
            remedy="Check the weights of the model, whose training may have diverged, or use float32.",
        )
    return states


def has_divided_task_layers(recognizer: FewShotRecognizer) -> bool:
    """Return True if there are task layers, and none of them changes the support."""
    wants_frames = getattr(getattr(recognizer, "head", None), "wants_frames", False)
    return not wants_frames and getattr(getattr(recognizer, "encoder", None), "has_divided_task_layers", False)


@torch.no_grad()
def compare_tasks(
    recognizer: FewShotRecognizer,
    support: SupportStates,
    labels: Tensor,
    query: VideoState,
    num_tasks: int,
    places: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the logits ``(E, Q, n_way)`` of several tasks of equal sizes at once.

    They equal the logits of single tasks up to rounding: the sums are the same, in products of other shapes.

    Args:
        recognizer: in evaluation mode.
        support: support states of the videos of ``E`` tasks, task after task, ``E*S``.
        labels: ``(S,)``, the same for all tasks.
        query: query states, ``E*Q`` videos.
        num_tasks: ``E``.
        places: indices of each task's videos in ``support``, ``(E, S)``. ``support`` can then hold any videos.
        dtype: convert the support states to this type, if they were stored in fewer bits.
    """
    state = support.state
    if places is not None:
        state = state.select(rearrange(places, "e s -> (e s)")).to(labels.device, dtype)
    encoder: Any = getattr(recognizer, "encoder", None)
    if support.attended is not None:
        query = recognizer.head.prepare(encoder.relate_query(support.attended, query, num_tasks, places))
        compare: Compare = recognizer.head.compare
    else:
        compare = recognizer.compare
        if getattr(encoder, "has_task_layer", False):
            return _compare_one_by_one(compare, state, labels, query, num_tasks)
    if num_tasks == 1:
        return _compare_one_by_one(compare, state, labels, query, num_tasks)
    return _compare_vectorized(compare, state, labels, query, num_tasks)


def videos_at_a_time(device: torch.device | str) -> int:
    """Return the number of videos to encode in one batch.

    On a CPU the batch keeps the cores busy without exceeding the cache. With tiny-clip, 12 videos took a fifth less
    time per video than 32, and 6 to 16 were equally fast. The number for accelerators was not measured.
    """
    return 12 if torch.device(device).type == "cpu" else 32


def check_states_can_be_kept(model: nn.Module) -> None:
    """Raise a DmgalError if a video's state depends on the other videos of its batch. Call it in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, NORMALIZES_BATCHES) and (module.training or module.running_mean is None):
            raise DmgalError(
                "Videos cannot be encoded once for all tasks.",
                received=f"{name}, a {type(module).__name__} that normalizes over the videos of its batch",
                expected="batch norms in evaluation mode with stored statistics",
                remedy="Call eval() (freeze_batch_norm keeps it so during training), and use track_running_stats=True.",
            )


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> VideoState:
    """Return the tensors whose names start with a prefix, under their names without it."""
    return VideoState({n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)})


def _compare_one_by_one(
    compare: Compare, support: VideoState, labels: Tensor, query: VideoState, num_tasks: int
) -> Tensor:
    supports, queries = (state.split([state.num_videos // num_tasks] * num_tasks) for state in (support, query))
    tasks = zip(supports, queries, strict=True)
    return torch.stack([compare(task_support, labels, task_query).logits for task_support, task_query in tasks])


def _compare_vectorized(
    compare: Compare, support: VideoState, labels: Tensor, query: VideoState, num_tasks: int
) -> Tensor:
    """Compare all tasks with `torch.vmap`, or one by one if the head does not support it."""

    def logits(support: dict[str, Tensor], query: dict[str, Tensor]) -> Tensor:
        return compare(VideoState(support), labels, VideoState(query)).logits

    tasks = [
        {name: rearrange(tensor, "(e v) ... -> e v ...", e=num_tasks) for name, tensor in state.items()}
        for state in (support, query)
    ]
    try:
        return torch.vmap(logits)(*tasks)
    except RuntimeError:  # The head branches on values, or memory ran out. Any other error is raised again below.
        return _compare_one_by_one(compare, support, labels, query, num_tasks)


PairScores = Literal["mean", "one_shot"]
MOST_AT_A_TIME = 64
NUMBERS_AT_A_TIME = 2**25
"""Limit on the memory of a head for a block of pairs, in elements of one video's state per pair."""
TABLE_GAIN = 2
"""Cost of a pair in a task relative to a pair in a table: measured between 2 and 3 (Bi-MHM, one CPU thread)."""


def why_no_pair_scores(recognizer: FewShotRecognizer, k_shot: int) -> str | None:
    """Return the reason why tasks cannot be looked up in a table of pairs, or None if they can."""
    if getattr(getattr(recognizer, "encoder", None), "has_task_layer", False):
        return "a task layer (a Cmga) makes a query's features depend on the whole support"
    head: object = getattr(recognizer, "head", None)
    kind: PairScores | None = getattr(head, "pair_scores", None)
    if kind is None:
        return f"{type(head).__name__} relates all support videos of a task, or does not set pair_scores"
    if kind == "one_shot" and k_shot > 1:
        return f"{type(head).__name__} joins the {k_shot} shots of a class before it compares them"
    return None


@torch.no_grad()
def pair_table(
    recognizer: FewShotRecognizer, states: PrecomputedStates, device: torch.device | str = "cpu", progress: bool = True
) -> Tensor:
    """Return the score of each pair of videos, ``(V, V)`` on the CPU: queries in rows, support videos in columns.

    Raises:
        DmgalError: the scores depend on the rest of the task.
    """
    reason = why_no_pair_scores(recognizer, k_shot=1)
    if reason:
        raise DmgalError(
            "This recognizer does not score pairs of videos independently.",
            received=reason,
            expected="no task layer, and a head with the attribute pair_scores",
            remedy="Evaluate episodes instead.",
        )
    state = states.query
    num_elements = sum(tensor[0].numel() for tensor in state.values())
    size = max(1, min(MOST_AT_A_TIME, int((NUMBERS_AT_A_TIME / max(num_elements, 1)) ** 0.5)))
    blocks = torch.arange(state.num_videos).split(size)
    support = [state.select(videos).to(device) for videos in blocks]
    rows = []
    for queries in progress_bar(blocks, progress=progress, desc="pairs", unit="block", leave=False):
        query = state.select(queries).to(device)
        parts = [recognizer.compare(part, _one_class_each(part, device), query).logits.cpu() for part in support]
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def look_up(table: Tensor, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Return the logits ``(E, Q, n_way)`` of many tasks from a `pair_table` ``(V, V)``.

    Tasks are indices of support videos ``(E, S)`` and query videos ``(E, Q)``. Their labels ``(S,)`` are the same.
    """
    scores = table[rearrange(query, "e q -> e q 1"), rearrange(support, "e s -> e 1 s")]
    members = class_members(labels, len(labels)).to(scores.dtype)  # (S, n_way)
    return scores @ (members / members.sum(dim=0))


def _one_class_each(support: VideoState, device: torch.device | str) -> Tensor:
    return torch.arange(support.num_videos, device=device)
