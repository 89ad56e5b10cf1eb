"""OTAM, ordered temporal alignment (CVPR 2020): the cheapest monotone path through the frame distances, made smooth."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import DmgalError
from .frame_distance import Center, FrameDistanceHead, Shots


def otam(frame_distances: Tensor, relaxation: float = 0.1) -> Tensor:
    """The soft-minimum cost of aligning the frames along columns to the frames along rows; one direction.

    A column of zeros stands on both sides of the matrix. ``R[t,s] = d[t,s] + softmin(R[t-1,s-1], R[t,s-1])``; in the
    matrix's first column and in the zeros on its right a path may also come from above, ``R[t-1,s]``; the first row is
    cumulative, the zeros on the left are free. ``softmin(x) = -relaxation * log(sum(exp(-x / relaxation)))``.

    Column s needs column s-1 alone, so all rows of a column, and all pairs of videos, are computed at once.

    Args:
        frame_distances: ``(...,T,T')``.
        relaxation: the smoothing lambda; 0.1 in OTAM, 0.5 in CLIP-FSAR.

    Returns:
        ``(...)``.
    """
    if relaxation <= 0:
        raise DmgalError(
            "OTAM cannot smooth its paths.",
            received=f"relaxation={relaxation}",
            expected="a number above 0",
            remedy="0.1 is OTAM's, 0.5 CLIP-FSAR's.",
        )
    columns = (frame_distances / -relaxation).unbind(dim=-1)  # T' log weights of one step, (...,T) each
    paths = torch.zeros_like(columns[0])  # log weight of all paths that end in each row of the left column of zeros
    for index, step in enumerate(columns):
        arriving = _from_the_left(paths)
        paths = _also_from_above(arriving, step) if index == 0 else arriving + step
    end = _from_the_left(paths).logsumexp(dim=-1)  # in the right column of zeros every row leads down to the last one
    return -relaxation * end


def otam_both_directions(frame_distances: Tensor, relaxation: float = 0.1) -> Tensor:
    """`otam` of the matrix plus `otam` of its transpose; ``(...,T,T')`` to ``(...)``."""
    transposed = frame_distances.transpose(-2, -1)
    if transposed.shape != frame_distances.shape:
        return otam(frame_distances, relaxation) + otam(transposed, relaxation)
    return otam(torch.stack((frame_distances, transposed)), relaxation).sum(dim=0)


class OTAM(FrameDistanceHead):
    """Frames are matched in order, time may be warped; both directions are summed.

    Args:
        relaxation: the smoothing lambda.

    The other options are those of `FrameDistanceHead`.
    """

    def __init__(
        self,
        relaxation: float = 0.1,
        center: Center = "none",
        logit_scale: float | None = None,
        learn_scale: bool = True,
        shots: Shots = "distances",
        eps: float = 0.01,
    ) -> None:
        super().__init__(center=center, logit_scale=logit_scale, learn_scale=learn_scale, shots=shots, eps=eps)
        self.relaxation = relaxation

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        return otam_both_directions(frame_distances, self.relaxation)

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        return query_frames + support_frames


def _from_the_left(paths: Tensor) -> Tensor:
    """Paths that step to the right, straight or one row down; the first row has nothing above it."""
    return torch.cat((paths[..., :1], torch.logaddexp(paths[..., 1:], paths[..., :-1])), dim=-1)


def _also_from_above(arriving: Tensor, step: Tensor) -> Tensor:
    """``paths[t] = step[t] + logaddexp(arriving[t], paths[t-1])`` for all rows at once."""
    total = step.cumsum(dim=-1)
    return total + (arriving - (total - step)).logcumsumexp(dim=-1)
