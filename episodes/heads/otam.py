"""OTAM, ordered temporal alignment (CVPR 2020): the smoothed cheapest monotone path through frame distances."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import DmgalError
from .frame_distance import Center, FrameDistanceHead, Shots


def otam(frame_distances: Tensor, relaxation: float = 0.1) -> Tensor:
    """Return the soft-minimum cost of aligning frames along columns to those along rows, ``(...,T,T')`` to ``(...)``.

    The matrix is padded with a column of zeros on both sides. The recurrence is
    ``R[t,s] = d[t,s] + softmin(R[t-1,s-1], R[t,s-1])`` with
    ``softmin(x) = -relaxation * log(sum(exp(-x / relaxation)))``. In the matrix's first column and in the right padding
    a path may also come from above, ``R[t-1,s]``. The first row is cumulative, and the left padding costs nothing.

    Column s depends on column s-1 only, so all rows of a column and all pairs of videos are computed at once.

    The ``relaxation`` is the smoothing lambda, 0.1 in OTAM and 0.5 in CLIP-FSAR.
    """
    if relaxation <= 0:
        raise DmgalError(
            "OTAM cannot smooth its paths with this relaxation.",
            received=f"relaxation={relaxation}",
            expected="a number above 0",
            remedy="Use 0.1 as in OTAM, or 0.5 as in CLIP-FSAR.",
        )
    columns = (frame_distances / -relaxation).unbind(dim=-1)  # T' log weights of one step, (...,T) each
    paths = torch.zeros_like(columns[0])  # log weight of all paths that end in each row of the left padding
    for index, step in enumerate(columns):
        arriving = _step_right(paths)
        paths = _add_steps_down(arriving, step) if index == 0 else arriving + step
    end = _step_right(paths).logsumexp(dim=-1)  # in the right padding every row leads down to the last one
    return -relaxation * end


def otam_both_directions(frame_distances: Tensor, relaxation: float = 0.1) -> Tensor:
    """Return `otam` of the matrix plus `otam` of its transpose, ``(...,T,T')`` to ``(...)``."""
    transposed = frame_distances.transpose(-2, -1)
    if transposed.shape != frame_distances.shape:
        return otam(frame_distances, relaxation) + otam(transposed, relaxation)
    return otam(torch.stack((frame_distances, transposed)), relaxation).sum(dim=0)


class OTAM(FrameDistanceHead):
    """Ordered matching of frames with time warping, summed over both directions.

    Args:
        relaxation: smoothing lambda.

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


def _step_right(paths: Tensor) -> Tensor:
    """Move paths one column right, straight or one row down; the first row has no row above it."""
    return torch.cat((paths[..., :1], torch.logaddexp(paths[..., 1:], paths[..., :-1])), dim=-1)


def _add_steps_down(arriving: Tensor, step: Tensor) -> Tensor:
    """Compute ``paths[t] = step[t] + logaddexp(arriving[t], paths[t-1])`` for all rows at once."""
    total = step.cumsum(dim=-1)
    return total + (arriving - (total - step)).logcumsumexp(dim=-1)
