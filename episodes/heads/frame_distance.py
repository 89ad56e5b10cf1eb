"""Heads that compare two videos by a matrix of cosine distances between their frames.

A subclass only says how such a matrix becomes one distance between two videos (Bi-MHM, OTAM, frame-aligned). All else
is here: centering, the cosine, the shots of a class, and the scale of the logits.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput

Center = Literal["none", "video", "both"]
Shots = Literal["distances", "prototype"]


class FrameDistanceHead(nn.Module):
    """Logits from distances between the frames of a query video and of each class's support videos.

    The defaults are the published form: uncentered, 0.01 added to the product of norms, distances summed over frames,
    logits = -distance, nothing learned. A ``logit_scale`` selects our form: distances averaged over frames, so that the
    scale means the same for any number of frames, times a learned ``exp(s)``. At scale ``2T`` both are equal for Bi-MHM
    and OTAM.

    Args:
        center: ``"none"``; ``"video"``: frame features minus their video's mean over frames, which removes what does
            not move; ``"both"``: the sum of both distances with learned positive weights that start at 1/2. Ours.
        logit_scale: None for the published logits; otherwise the scale's initial value (10 is good, 50 harmful).
        learn_scale: whether a given ``logit_scale`` is trained.
        shots: ``"distances"``: a class is as far as its support videos on average (DMGAL); ``"prototype"``: as far as
            the mean of their frame features (D2ST, MoLo).
        eps: added to the product of norms (0.01 in DMGAL's and MoLo's code); 0 for the plain cosine (D2ST, HyRSM),
            which does not depend on the features' scale: choose it for norms near or below 1, as after centering.
    """

    def __init__(
        self,
        center: Center = "none",
        logit_scale: float | None = None,
        learn_scale: bool = True,
        shots: Shots = "distances",
        eps: float = 0.01,
    ) -> None:
        super().__init__()
        check_option("center", center, ("none", "video", "both"))
        check_option("shots", shots, ("distances", "prototype"))
        if eps < 0 or (logit_scale is not None and logit_scale <= 0):
            raise DmgalError(
                "A matching head got a number that it cannot use.",
                received=f"eps={eps}, logit_scale={logit_scale}",
                expected="eps >= 0, logit_scale > 0 or None",
                remedy="Leave them out for the published form.",
            )
        self.center = center
        self.shots = shots
        self.eps = eps
        self.log_scale: Tensor | None = None
        if logit_scale is not None:
            self.log_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]), requires_grad=learn_scale)
        self.log_weights = nn.Parameter(torch.full((2,), math.log(0.5))) if center == "both" else None

    @property
    def pair_scores(self) -> Literal["mean", "one_shot"]:
        """How logits come from scores of pairs of videos, see ``episodes/states/pair_scores.py``."""
        return "mean" if self.shots == "distances" else "one_shot"

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        """The distance of two videos, a sum over frames; ``(...,T,T')`` to ``(...)``, frames of the query first."""
        raise NotImplementedError

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        """How many frame distances `video_distance` sums."""
        raise NotImplementedError

    def prepare(self, features: Tensor) -> VideoState:
        """From ``(V,T,D)``, the frames to compare: ``frames``, and for ``center="both"`` also ``centered``."""
        check_frames(self, features)
        if self.center == "none":
            return VideoState(frames=features)
        if self.center == "video":
            return VideoState(frames=center_frames(features))
        return VideoState(frames=features, centered=center_frames(features))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Logits of each query video for each class of the support.

        Args:
            support: `prepare` of ``S`` videos.
            labels: ``(S,)``, classes from 0; every class up to the largest has a support video.
            query: `prepare` of ``Q`` videos.

        Returns:
            Logits ``(Q,n_way)``, float32 (float64 for float64 features); no losses.
        """
        # Distances are small differences of large numbers, so a mixed-precision region must not reach in here.
        with torch.autocast(labels.device.type, enabled=False):
            names = ("frames",) if self.log_weights is None else ("frames", "centered")
            distances = [self._class_distances(support[name], labels, query[name]) for name in names]
            if self.log_weights is not None:
                distances = [weight * part for weight, part in zip(self.log_weights.exp(), distances, strict=True)]
            logits = -torch.stack(distances).sum(dim=0)
            if self.log_scale is not None:
                logits = self.log_scale.to(logits.dtype).exp() * logits
        return EpisodeOutput(logits=logits)

    def _class_distances(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """``(S,T',D)``, ``(S,)`` and ``(Q,T,D)`` to ``(Q,n_way)``."""
        support, query = at_least_float32(support), at_least_float32(query)
        if self.shots == "prototype":
            return self._video_distances(query, class_means(support, labels))
        return class_means(self._video_distances(query, support).T, labels).T

    def _video_distances(self, query: Tensor, support: Tensor) -> Tensor:
        """``(Q,T,D)`` and ``(S,T',D)`` to ``(Q,S)``."""
        distances = self.video_distance(frame_distances(query, support, self.eps))
        if self.log_scale is None:
            return distances
        return distances / self.num_matches(query.shape[1], support.shape[1])


def frame_distances(query: Tensor, support: Tensor, eps: float = 0.01) -> Tensor:
    """``1 - cosine`` of each frame of each query video and each frame of each support video.

    Args:
        query: ``(Q,T,D)``.
        support: ``(S,T',D)``.
        eps: added to the product of norms. With 0 a frame of zeros has the distance 1 to every frame.

    Returns:
        ``(Q,S,T,T')``.
    """
    query_frames, support_frames = query.flatten(0, 1), support.flatten(0, 1)  # (Q*T,D), (S*T',D)
    products = query_frames @ support_frames.T
    norms = torch.outer(query_frames.norm(dim=-1), support_frames.norm(dim=-1)) + eps
    cosines = products / norms.masked_fill(norms == 0, 1.0)
    pairs = (1 - cosines).view(*query.shape[:2], *support.shape[:2])  # (Q,T,S,T')
    return pairs.transpose(1, 2)


def center_frames(features: Tensor) -> Tensor:
    """Frame features minus their video's mean over frames; ``(V,T,D)`` to the same shape.

    A frame that differs from the mean by no more than rounding becomes zero: the direction of what is left would be
    noise, different on each machine, and a cosine would blow it up.
    """
    frames = at_least_float32(features)
    centered = frames - frames.mean(dim=1, keepdim=True)
    rounding = 4 * torch.finfo(frames.dtype).eps * frames.norm(dim=-1, keepdim=True)
    is_still = centered.norm(dim=-1, keepdim=True) <= rounding
    return centered.masked_fill(is_still, 0.0).to(features.dtype)


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """The mean over the shots of each class; ``(S,...)`` and labels ``(S,)`` to ``(n_way,...)``."""
    members = class_members(labels, len(values)).to(values.dtype)  # (S,n_way)
    return torch.tensordot((members / members.sum(dim=0)).T, values, dims=1)


def class_members(labels: Tensor, num_support: int) -> Tensor:
    """Which support video belongs to which class; labels ``(S,)`` to ``(S,n_way)`` of 0 and 1.

    Raises:
        DmgalError: not one label for each support video, or a class without a support video.
    """
    if labels.shape != (num_support,):
        raise DmgalError(
            "Each support video needs one label.",
            received=f"labels of shape {tuple(labels.shape)} for {num_support} support videos",
            expected=f"({num_support},)",
            remedy="Give the support's labels, not the query's.",
        )
    members = functional.one_hot(labels)
    if (members.sum(dim=0) == 0).any():
        raise DmgalError(
            "A class of the task has no support video.",
            received=f"labels {labels.tolist()}",
            expected="every class from 0 to the largest label at least once",
            remedy="Number the classes of the task from 0 without gaps.",
        )
    return members


def check_frames(head: nn.Module, features: Tensor) -> None:
    """Refuse what are not frame features ``(V,T,D)``, with the way to them."""
    if features.dim() != 3:
        raise DmgalError(
            f"{type(head).__name__} compares frame features.",
            received=f"a tensor of shape {tuple(features.shape)}",
            expected="(videos, frames, width)",
            remedy="Pool the backbone's patches first, e.g. FrameEncoder(..., pooling='patch_mean').",
        )


def at_least_float32(features: Tensor) -> Tensor:
    """Half precisions to float32, because distances are small differences of large numbers."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse an option's value that is not among the known ones."""
    if value not in known:
        raise DmgalError(
            f"A matching head does not know this {name}.",
            received=f"{name}={value!r}",
            expected=f"one of {', '.join(known)}",
            remedy=f"Choose one of these for {name}.",
        )
