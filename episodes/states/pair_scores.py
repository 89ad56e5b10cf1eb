"""Heads that score videos in pairs: every pair is scored once, and the logits of a task are looked up.

A head's attribute ``pair_scores`` says that its logit of a class depends on the query and the support of that class
alone: ``"mean"`` where the logit is the mean of those of the class's shots, ``"one_shot"`` where it holds for a single
shot only. Then a task in which every support video is a class of its own gives the scores of all its pairs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..heads.frame_distance import class_members
from ..recognizer import FewShotRecognizer

PairScores = Literal["mean", "one_shot"]
MOST_AT_A_TIME = 64
NUMBERS_AT_A_TIME = 2**25
"""Bounds what a head builds for a block of pairs; in numbers of one video's state for each pair."""
TABLE_GAIN = 2
"""A pair of a table costs a half or a third of a pair of a task (Bi-MHM, one CPU thread)."""


def why_no_pair_scores(recognizer: FewShotRecognizer, k_shot: int) -> str | None:
    """Why tasks cannot be looked up in a table of pairs; None where they can."""
    if getattr(getattr(recognizer, "encoder", None), "has_task_layer", False):
        return "a task layer (a Cmga) makes a query's features depend on the whole support"
    head: Any = getattr(recognizer, "head", None)
    kind: PairScores | None = getattr(head, "pair_scores", None)
    if kind is None:
        return f"{type(head).__name__} relates all support videos of a task, or does not say that it does not"
    if kind == "one_shot" and k_shot > 1:
        return f"{type(head).__name__} joins the {k_shot} shots of a class before it compares"
    return None


@torch.no_grad()
def pair_table(
    recognizer: FewShotRecognizer, states: VideoState, device: torch.device | str = "cpu", progress: bool = True
) -> Tensor:
    """The score of every pair of videos, ``(V, V)`` on the CPU: row the query, column the support video.

    Raises:
        DmgalError: scores that depend on the rest of the task.
    """
    reason = why_no_pair_scores(recognizer, k_shot=1)
    if reason:
        raise DmgalError(
            "Pairs of videos have no scores of their own.",
            received=reason,
            expected="no task layer, and a head with the attribute pair_scores",
            remedy="evaluate episodes instead",
        )
    numbers = sum(tensor[0].numel() for tensor in states.values())
    size = max(1, min(MOST_AT_A_TIME, int((NUMBERS_AT_A_TIME / max(numbers, 1)) ** 0.5)))
    blocks = torch.arange(states.num_videos).split(size)
    support = [states.select(videos).to(device) for videos in blocks]
    rows = []
    for queries in tqdm(blocks, desc="pairs", unit="block", leave=False, disable=not progress):
        query = states.select(queries).to(device)
        parts = [recognizer.compare(part, _each_its_own(part, device), query).logits.cpu() for part in support]
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def look_up(table: Tensor, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Logits of many tasks.

    Args:
        table: `pair_table`, ``(V, V)``.
        support: places of the support videos of ``E`` tasks, ``(E, S)``.
        labels: ``(S,)``, the same for all tasks.
        query: ``(E, Q)``.

    Returns:
        ``(E, Q, n_way)``.
    """
    scores = table[query[:, :, None], support[:, None]]  # (E, Q, S)
    members = class_members(labels, len(labels)).to(scores.dtype)  # (S, n_way)
    return scores @ (members / members.sum(dim=0))


def _each_its_own(support: VideoState, device: torch.device | str) -> Tensor:
    return torch.arange(support.num_videos, device=device)
