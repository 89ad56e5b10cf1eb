"""Late fusion of appearance and motion, weighted for each task by its own support videos (our own method).

The streams of a `StreamEncoder` give several parts: the first stream as it is, which shows appearance and pose, and
each stream minus the mean of the video over its frames, which shows what changes. A part compares two videos by Bi-MHM
with plain cosines. One more part compares frames of the same index of the first stream centered, which has learned
nothing of motion. Which part helps depends on the task and on the query:

1. The score of part ``p`` for query ``q`` and class ``c`` is ``z_p(q, c) = (m_p - d_p(q, c)) / s_p``. Here ``d_p`` is
   the mean distance to the shots of the class, and ``m_p`` and ``s_p`` are mean and standard deviation of the distances
   between support videos of different classes. A score then means the same in every part.
2. For each weighting ``w`` on a grid over the simplex, every support video whose class has another one is held out and
   classified by the rest. ``e(w)`` is the sum of the cross-entropies of ``softmax(tau * sum_p w_p z_p)``. The weights
   of the task are the mean of the grid under ``softmax(-concentration * |w - prior|² - e(w))``. With one shot, nothing
   can be held out, and the weights are the prior.
3. A part that knows the class of a query is nearer to it than support videos are to their nearest other class. So for
   each query the weights are multiplied by ``(n_p / min_c d_p(q, c)) ** trust`` and normalized. ``n_p`` is the mean
   distance of a support video to its nearest other class.

Of more than 256 support videos, every n-th is held out and measured, against all others. A query's logits depend on
the support and on this query only. The constants were chosen on validation classes, see docs/motion.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional

from ...backbones.state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput
from .frame_distance import (
    at_least_float32,
    bi_mhm,
    center_frames,
    check_frames,
    class_members,
    frame_aligned,
    frame_distances,
)

GRID_STEPS = 4
"""Weights on the grid are multiples of 1/4."""
MOST_HELD_OUT = 256
"""Number of support videos that are held out and measured. Galleries have more, tasks fewer."""
LEAST_SPREAD = 0.05
"""Lower limit of ``s_p / m_p``. A task of two videos has only one distance between classes."""
LARGEST_RATIO = 100.0
"""Limit of ``n_p / min_c d_p(q, c)`` and of its inverse. It is infinite for a copy of a support video."""


class LateFusion(nn.Module):
    """A head that weighs appearance and motion for each task and query, see the module. It has no parameters.

    Args:
        widths: number of channels of each stream, in the order of the features. None: one stream of any width.
        prior: weights without knowledge of the task: of the first stream as it is, of the same centered, of its frames
            of the same index, then of each further stream. None: all are equal. `dmgal.recipes.run.build` has those
            that were chosen on validation classes.
        concentration: strength of the prior.
        tau: scale of the logits.
        trust: exponent of a query's own weights. 0: the weights of the task for every query.

    Raises:
        DmgalError: the prior does not have one weight per part.
    """

    def __init__(
        self,
        widths: Sequence[int] | None = None,
        prior: Sequence[float] | None = None,
        concentration: float = 8.0,
        tau: float = 2.0,
        trust: float = 1.0,
    ) -> None:
        super().__init__()
        self.widths = None if widths is None else tuple(widths)
        num_parts = 2 + len(self.widths or (0,))
        self.prior = tuple([1 / num_parts] * num_parts if prior is None else prior)
        is_valid = all(weight >= 0 for weight in self.prior) and abs(sum(self.prior) - 1) < 1e-6
        if len(self.prior) != num_parts or not is_valid:
            raise DmgalError(
                "The prior of LateFusion does not fit its parts.",
                received=f"prior={list(self.prior)}",
                expected=f"{num_parts} weights of at least 0 that sum to 1: of the first stream as it is, centered, "
                "and by frames of the same index, then of each further stream",
                remedy="Correct the prior, or omit it for the default.",
            )
        self.concentration, self.tau, self.trust = concentration, tau, trust

    def prepare(self, features: Tensor) -> VideoState:
        """Return the frames ``(V,T,D)`` of each part, from the features of all streams ``(V,T,D1+D2+...)``."""
        check_frames(self, features)
        widths = self.widths or (features.shape[-1],)
        if sum(widths) != features.shape[-1]:
            raise DmgalError(
                "The features do not fit the streams of LateFusion.",
                received=f"{features.shape[-1]} channels",
                expected=f"{' + '.join(map(str, widths))} channels",
                remedy="Pass widths=encoder.widths to the head.",
            )
        streams = features.split(widths, dim=-1)
        centered = {f"centered{index}": center_frames(stream) for index, stream in enumerate(streams)}
        return VideoState(frames=streams[0], **centered)

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        with torch.autocast(labels.device.type, enabled=False):
            measured = slice(None, None, -(-support.num_videos // MOST_HELD_OUT))
            between = self._distances(support.select(measured), support)  # (P,M,S)
            members = class_members(labels, support.num_videos).to(between.dtype)  # (S,n_way)
            mean, spread = _scale(between, members[measured], members)
            others = _class_distances_without_itself(between, members, measured)
            weights = self.task_weights((mean - others) / spread, labels, measured)
            to_class = self._distances(query, support) @ (members / members.sum(dim=0))  # (P,Q,n_way)
            weights = self.query_weights(weights, to_class, others, members[measured])
            scores = (mean - to_class) / spread
            return EpisodeOutput(self.tau * einsum(weights, scores, "p q, p q n -> q n"))

    def task_weights(self, held_out: Tensor, labels: Tensor, measured: slice) -> Tensor:
        """Return the weights of the parts ``(P,)`` for a task.

        Args:
            held_out: scores ``(P,M,n_way)`` of the measured support videos against the others.
            labels: classes of all support videos, ``(S,)``.
            measured: the ``M`` measured ones of them.
        """
        prior = held_out.new_tensor(self.prior)
        shots, labels = torch.bincount(labels), labels[measured]
        usable = shots[labels] > 1
        if not usable.any() or len(shots) < 2:
            return prior
        grid = held_out.new_tensor(_simplex(len(prior)))  # (G,P)
        logits = self.tau * einsum(grid, held_out[:, usable], "g p, p s n -> g n s")
        targets = labels[usable].expand(len(grid), -1)
        loss = functional.cross_entropy(logits, targets, reduction="none").sum(dim=-1)
        from_prior = self.concentration * (grid - prior).square().sum(dim=-1)
        return (-from_prior - loss).softmax(dim=0) @ grid

    def query_weights(self, weights: Tensor, to_class: Tensor, others: Tensor, members: Tensor) -> Tensor:
        """Return the weights of the parts ``(P,Q)`` for each query.

        Args:
            weights: those of the task, ``(P,)``.
            to_class: distances ``(P,Q,n_way)`` of the queries to the classes.
            others: distances ``(P,M,n_way)`` of the measured support videos to the classes without themselves.
            members: one-hot classes ``(M,n_way)`` of the measured support videos.
        """
        if members.shape[1] < 2:
            return weights[:, None].expand(-1, to_class.shape[1])
        nearest_other = others.masked_fill(members.bool(), torch.inf).amin(dim=-1).mean(dim=-1, keepdim=True)  # (P,1)
        tiny = torch.finfo(to_class.dtype).tiny
        nearest = to_class.amin(dim=-1).clamp_min(0) + tiny
        ratios = ((nearest_other.clamp_min(0) + tiny) / nearest).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
        weighed = weights[:, None] * ratios**self.trust
        return weighed / weighed.sum(dim=0)

    def _distances(self, first: VideoState, second: VideoState) -> Tensor:
        """Return the distances ``(P,V,W)`` of all pairs of videos in each part, averaged over frames."""
        streams = {name: self._frame_distances(name, first, second) for name in self._states()}
        of_index = frame_aligned(streams["centered0"]) / first["frames"].shape[1]
        as_it_is, centered, *further = (bi_mhm(each) / sum(each.shape[-2:]) for each in streams.values())
        return torch.stack([as_it_is, centered, of_index, *further])

    def _states(self) -> list[str]:
        """Return the names of the states of all streams."""
        return ["frames", *(f"centered{index}" for index in range(len(self.prior) - 2))]

    @staticmethod
    def _frame_distances(name: str, first: VideoState, second: VideoState) -> Tensor:
        """Return the distances ``(V,W,T,T)`` of the frames of all pairs of videos."""
        return frame_distances(at_least_float32(first[name]), at_least_float32(second[name]), eps=0.0)


def _scale(between: Tensor, measured: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation ``(P,1,1)`` of the distances between support videos of different classes."""
    others = 1 - measured @ members.T  # (M,S)
    if members.shape[1] < 2:  # no videos of different classes: the same unit for any number of shots, also for one
        unit = torch.ones_like(between[:, :1, :1])
        return 2 * unit, unit
    count = others.sum()
    mean = (between * others).sum(dim=(1, 2), keepdim=True) / count
    variance = ((between - mean).square() * others).sum(dim=(1, 2), keepdim=True) / count
    eps = torch.finfo(between.dtype).eps
    least = LEAST_SPREAD * mean.abs() + eps
    return mean, torch.maximum(variance, least.square()).sqrt()  # the gradient of sqrt(0) would be infinite


def _class_distances_without_itself(between: Tensor, members: Tensor, measured: slice) -> Tensor:
    """Return the mean distance ``(P,M,n_way)`` of each measured support video to the other shots of each class."""
    itself = torch.eye(len(members), dtype=between.dtype, device=between.device)[measured]
    return ((between * (1 - itself)) @ members) / (members.sum(dim=0) - members[measured]).clamp_min(1)


def _simplex(num_parts: int) -> list[list[float]]:
    """Return all weightings of the parts that are multiples of ``1 / GRID_STEPS`` and sum to 1."""
    steps = itertools.product(range(GRID_STEPS + 1), repeat=num_parts)
    return [[step / GRID_STEPS for step in counts] for counts in steps if sum(counts) == GRID_STEPS]
