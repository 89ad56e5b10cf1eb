"""What a video is to any task, on both sides: as one of the support, and as a query.

Without a task layer the two are the same, the head's state of the video. With task layers that leave the support alone
(a Cmga), the support's side goes all the way to the head, and a query's side stops where it first looks at the support.
Both are functions of one video, so they are computed once and used in any number of tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..recognizer import FewShotRecognizer

ATTENDED, PREPARED, QUERY = "support.attended.", "support.prepared.", "query."
"""Begin the names of a video's three parts where its sides differ."""
NORMALIZES_BATCHES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def encode_sides(recognizer: FewShotRecognizer, videos: Tensor) -> VideoState:
    """All of videos ``(V, T, 3, H, W)`` that can be kept for later tasks; see `compare_tasks`."""
    state = recognizer.encode(videos)
    if not has_divided_task_layers(recognizer):
        return state
    encoder: Any = recognizer.encoder
    support = encoder.support_side(state)
    prepared = recognizer.head.prepare(support.pop("features"))
    named = {ATTENDED: support, PREPARED: prepared, QUERY: encoder.query_side(state)}
    return VideoState({prefix + name: tensor for prefix, part in named.items() for name, tensor in part.items()})


def has_divided_task_layers(recognizer: FewShotRecognizer) -> bool:
    """Whether there are task layers, all of which leave the support alone."""
    wants_frames = getattr(getattr(recognizer, "head", None), "wants_frames", False)
    return not wants_frames and getattr(getattr(recognizer, "encoder", None), "has_divided_task_layers", False)


def sides(states: VideoState) -> tuple[VideoState, VideoState]:
    """The part of kept states that support videos are taken from, and the part for queries."""
    query = VideoState({name: tensor for name, tensor in states.items() if name.startswith(QUERY)})
    if not query:
        return states, states
    return VideoState({name: tensor for name, tensor in states.items() if name not in query}), query


@torch.no_grad()
def compare_tasks(
    recognizer: FewShotRecognizer,
    support: VideoState,
    labels: Tensor,
    query: VideoState,
    num_tasks: int,
    places: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Logits of several tasks of equal sizes at once.

    The same sums as of one task after the other, in products of other shapes, so equal up to rounding.

    Args:
        support: from `sides`, the support videos of ``E`` tasks one after the other, ``E*S``.
        labels: ``(S,)``, the same for all tasks.
        query: from `sides`, ``E*Q`` videos.
        num_tasks: ``E``.
        places: ``(E, S)``, which videos of ``support`` are a task's; then it may be of any number of videos, anywhere.
        dtype: turn the support's states into this type, where they were kept in fewer bits.

    Returns:
        ``(E, Q, n_way)``.
    """
    attended = _part(support, ATTENDED)
    if places is not None:
        rest = VideoState({name: tensor for name, tensor in support.items() if not name.startswith(ATTENDED)})
        support = rest.select(places.flatten()).to(labels.device, dtype)
    encoder: Any = getattr(recognizer, "encoder", None)
    if any(name.startswith(QUERY) for name in query):
        features = encoder.relate_query(attended, _part(query, QUERY), num_tasks, places)
        support, query = _part(support, PREPARED), recognizer.head.prepare(features)
        compare = recognizer.head.compare
    else:
        compare = recognizer.compare
        if getattr(encoder, "has_task_layer", False):
            return _one_by_one(compare, support, labels, query, num_tasks)
    if num_tasks == 1:
        return _one_by_one(compare, support, labels, query, num_tasks)
    return _side_by_side(compare, support, labels, query, num_tasks)


def videos_at_a_time(device: torch.device | str) -> int:
    """How many to encode in one batch.

    On a CPU as many as keep it busy without leaving its cache: with tiny-clip 12 took a fifth less time per video than
    32, 6 to 16 were alike. On accelerators it was not measured.
    """
    return 12 if torch.device(device).type == "cpu" else 32


def check_states_can_be_kept(model: nn.Module) -> None:
    """Refuse a model whose state of a video depends on what else is in its batch; call it in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, NORMALIZES_BATCHES) and (module.training or module.running_mean is None):
            raise DmgalError(
                "Videos cannot be encoded once for all tasks.",
                received=f"{name}, a {type(module).__name__} that normalizes over the videos of its batch",
                expected="batch norms in evaluation mode with stored statistics, so that a state is of one video alone",
                remedy="call eval() (freeze_batch_norm keeps it in training), and track_running_stats=True",
            )


def _part(states: VideoState, prefix: str) -> VideoState:
    return VideoState({n.removeprefix(prefix): tensor for n, tensor in states.items() if n.startswith(prefix)})


def _one_by_one(compare: Any, support: VideoState, labels: Tensor, query: VideoState, num_tasks: int) -> Tensor:
    supports, queries = (side.split([side.num_videos // num_tasks] * num_tasks) for side in (support, query))
    return torch.stack([compare(one, labels, other).logits for one, other in zip(supports, queries, strict=True)])


def _side_by_side(compare: Any, support: VideoState, labels: Tensor, query: VideoState, num_tasks: int) -> Tensor:
    """By `torch.vmap`, which gives every operation of a head a dimension of tasks; one by one where it cannot."""

    def logits(support: dict[str, Tensor], query: dict[str, Tensor]) -> Tensor:
        return compare(VideoState(support), labels, VideoState(query)).logits

    tasks = [{name: t.unflatten(0, (num_tasks, -1)) for name, t in side.items()} for side in (support, query)]
    try:
        return torch.vmap(logits)(*tasks)
    except RuntimeError:  # a head that branches on its numbers, or too little memory; any other reason will come again
        return _one_by_one(compare, support, labels, query, num_tasks)
