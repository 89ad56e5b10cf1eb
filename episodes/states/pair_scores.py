"""Tables of pair scores: each pair of videos is scored once, and the logits of a task are looked up.

A head has pair scores if its logit for a class depends only on the query and on that class's support. Its attribute
``pair_scores`` is ``"mean"`` if the logit is the mean over the logits of the class's shots. It is ``"one_shot"`` if
the property only holds for one shot. A task with one class per support video then gives the scores of all its pairs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..heads.frame_distance import class_members
from ..recognizer import FewShotRecognizer

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
    head: Any = getattr(recognizer, "head", None)
    kind: PairScores | None = getattr(head, "pair_scores", None)
    if kind is None:
        return f"{type(head).__name__} relates all support videos of a task, or does not set pair_scores"
    if kind == "one_shot" and k_shot > 1:
        return f"{type(head).__name__} joins the {k_shot} shots of a class before it compares them"
    return None


@torch.no_grad()
def pair_table(
    recognizer: FewShotRecognizer, states: VideoState, device: torch.device | str = "cpu", progress: bool = True
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
    num_elements = sum(tensor[0].numel() for tensor in states.values())
    size = max(1, min(MOST_AT_A_TIME, int((NUMBERS_AT_A_TIME / max(num_elements, 1)) ** 0.5)))
    blocks = torch.arange(states.num_videos).split(size)
    support = [states.select(videos).to(device) for videos in blocks]
    rows = []
    for queries in tqdm(blocks, desc="pairs", unit="block", leave=False, disable=not progress):
        query = states.select(queries).to(device)
        parts = [recognizer.compare(part, _one_class_each(part, device), query).logits.cpu() for part in support]
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def look_up(table: Tensor, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Return the logits ``(E, Q, n_way)`` of many tasks.

    Args:
        table: `pair_table`, ``(V, V)``.
        support: indices of the support videos of ``E`` tasks, ``(E, S)``.
        labels: ``(S,)``, the same for all tasks.
        query: indices of the query videos, ``(E, Q)``.
    """
    scores = table[rearrange(query, "e q -> e q 1"), rearrange(support, "e s -> e 1 s")]
    members = class_members(labels, len(labels)).to(scores.dtype)  # (S, n_way)
    return scores @ (members / members.sum(dim=0))


def _one_class_each(support: VideoState, device: torch.device | str) -> Tensor:
    return torch.arange(support.num_videos, device=device)
