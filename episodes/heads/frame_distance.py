"""Base class of heads that compare two videos by a matrix of cosine distances between their frames.

A subclass only defines how such a matrix becomes one distance between two videos (Bi-MHM, OTAM, frame-aligned). The
base class handles centering, the cosine, the shots of a class, and the scale of the logits.

Bi-MHM is the bidirectional mean Hausdorff metric of HyRSM (CVPR 2022), which DMGAL uses too. It ignores frame order.

Frame-aligned matching compares frame t with frame t, so order matters and time cannot be warped.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import check_equal_frames
from ...backbones.state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput

Center = Literal["none", "video", "both"]
Shots = Literal["distances", "prototype"]


class FrameDistanceHead(nn.Module):
    """Base class of heads with logits from frame distances between a query and each class's support videos.

    The defaults are the published form: uncentered, 0.01 added to the product of norms, distances summed over frames,
    logits = -distance, no parameters. A ``logit_scale`` selects our form: distances averaged over frames, times a
    learned ``exp(s)``. The scale then means the same for any number of frames. At scale ``2T`` both forms are equal for
    Bi-MHM and OTAM.

    Args:
        center: ``"none"`` (published); ``"video"`` subtracts a video's mean over frames, which removes static content;
            ``"both"`` sums both distances with learned positive weights that start at 1/2. The last two are ours.
        logit_scale: None for the published logits, otherwise the initial value of the scale (10 works, 50 harms).
        learn_scale: train the ``logit_scale``.
        shots: ``"distances"`` averages the distances to a class's support videos (DMGAL); ``"prototype"`` takes the
            distance to the mean of their frame features (D2ST, MoLo).
        eps: constant added to the product of norms (0.01 in the code of DMGAL and MoLo). With 0, the plain cosine of
            D2ST and HyRSM, distances do not depend on the features' scale. Use 0 for norms near or below 1, such as
            after centering.
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
        check_option(self, "center", center, ("none", "video", "both"))
        check_option(self, "shots", shots, ("distances", "prototype"))
        check_number(self, "eps", eps, eps >= 0, "at least 0")
        check_number(self, "logit_scale", logit_scale, logit_scale is None or logit_scale > 0, "more than 0, or None")
        self.center = center
        self.shots = shots
        self.eps = eps
        self.log_scale: Tensor | None = None
        if logit_scale is not None:
            self.log_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]), requires_grad=learn_scale)
        self.log_weights = nn.Parameter(torch.full((2,), math.log(0.5))) if center == "both" else None

    @property
    def pair_scores(self) -> Literal["mean", "one_shot"]:
        """Rule that turns scores of video pairs into logits, see ``episodes/evaluation/states.py``."""
        return "mean" if self.shots == "distances" else "one_shot"

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        """Sum ``(...,T,T')`` over matched frames to video distances ``(...)``; query frames come first."""
        raise NotImplementedError

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        """Return the number of frame distances that `video_distance` sums."""
        raise NotImplementedError

    def prepare(self, features: Tensor) -> VideoState:
        """Return ``frames`` to compare from ``(V,T,D)``, and also ``centered`` frames for ``center="both"``."""
        check_frames(self, features)
        if self.center == "none":
            return VideoState(frames=features)
        if self.center == "video":
            return VideoState(frames=center_frames(features))
        return VideoState(frames=features, centered=center_frames(features))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``.

        The labels count from 0 without gaps. Logits are float32, or float64 for float64 features. There are no losses.
        """
        # Distances are small differences of large numbers, so autocast must stay off here.
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
        """Return class distances ``(Q,n_way)`` from ``(S,T',D)``, ``(S,)`` and ``(Q,T,D)``."""
        support, query = at_least_float32(support), at_least_float32(query)
        if self.shots == "prototype":
            return self._video_distances(query, class_means(support, labels))
        return class_means(self._video_distances(query, support).T, labels).T

    def _video_distances(self, query: Tensor, support: Tensor) -> Tensor:
        """Return video distances ``(Q,S)`` from ``(Q,T,D)`` and ``(S,T',D)``."""
        distances = self.video_distance(frame_distances(query, support, self.eps))
        if self.log_scale is None:
            return distances
        return distances / self.num_matches(query.shape[1], support.shape[1])


def frame_distances(query: Tensor, support: Tensor, eps: float = 0.01) -> Tensor:
    """Return ``1 - cosine`` ``(Q,S,T,T')`` of each query frame ``(Q,T,D)`` and each support frame ``(S,T',D)``.

    The constant ``eps`` is added to the product of norms. With 0, a frame of zeros has distance 1 to every frame.
    """
    query_frames, support_frames = query.flatten(0, 1), support.flatten(0, 1)  # (Q*T,D), (S*T',D)
    products = query_frames @ support_frames.T
    norms = torch.outer(query_frames.norm(dim=-1), support_frames.norm(dim=-1)) + eps
    cosines = products / norms.masked_fill(norms == 0, 1.0)
    (num_query, query_length), (num_support, support_length) = query.shape[:2], support.shape[:2]
    lengths = {"q": num_query, "t": query_length, "s": num_support, "u": support_length}
    return rearrange(1 - cosines, "(q t) (s u) -> q s t u", **lengths)


def center_frames(features: Tensor) -> Tensor:
    """Subtract each video's mean over frames from its frame features ``(V,T,D)``.

    A frame that differs from the mean only by rounding becomes zero. The direction of its residual would be noise that
    differs between machines, and a cosine would amplify it.
    """
    frames = at_least_float32(features)
    centered = frames - frames.mean(dim=1, keepdim=True)
    rounding = 4 * torch.finfo(frames.dtype).eps * frames.norm(dim=-1, keepdim=True)
    is_still = centered.norm(dim=-1, keepdim=True) <= rounding
    return centered.masked_fill(is_still, 0.0).to(features.dtype)


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Average values ``(S,...)`` over the shots of each class by labels ``(S,)``, to ``(n_way,...)``."""
    members = class_members(labels, len(values)).to(values.dtype)  # (S,n_way)
    return torch.tensordot((members / members.sum(dim=0)).T, values, dims=1)


def class_members(labels: Tensor, num_support: int) -> Tensor:
    """Return the one-hot class membership ``(S,n_way)`` of labels ``(S,)``.

    Raises:
        DmgalError: the number of labels is not ``S``, or a class has no support video.
    """
    if labels.shape != (num_support,):
        raise DmgalError(
            "Each support video needs one label.",
            received=f"labels of shape {tuple(labels.shape)} for {num_support} support videos",
            expected=f"({num_support},)",
            remedy="Pass the support's labels, not the query's.",
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
    """Raise DmgalError unless features are frame features ``(V,T,D)``."""
    if features.dim() != 3:
        raise DmgalError(
            f"{type(head).__name__} compares frame features.",
            received=f"a tensor of shape {tuple(features.shape)}",
            expected="(videos, frames, width)",
            remedy="Pool the backbone's patches first, e.g. FrameEncoder(..., pooling='patch_mean').",
        )


def check_maps(head: nn.Module, features: Tensor) -> None:
    """Raise DmgalError unless features are patch maps ``(V,T,C,H,W)``."""
    if features.dim() != 5:
        raise DmgalError(
            f"{type(head).__name__} requires patch maps.",
            received=f"a tensor of shape {tuple(features.shape)}",
            expected="(videos, frames, channels, height, width)",
            remedy="Use the backbone's patch maps with pooling='map'.",
        )


def at_least_float32(features: Tensor) -> Tensor:
    """Convert half precision to float32, because distances are small differences of large numbers."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def check_option(head: nn.Module, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise DmgalError unless the value of an option is a known one."""
    if value not in known:
        raise DmgalError(
            f"{type(head).__name__} does not support this {name}.",
            received=f"{name}={value!r}",
            expected=f"one of {', '.join(known)}",
            remedy=f"Choose one of these values for {name}.",
        )


def check_number(head: nn.Module, name: str, value: float | None, is_valid: bool, expected: str) -> None:
    """Raise DmgalError unless the number of an option is valid."""
    if not is_valid:
        raise DmgalError(
            f"{type(head).__name__} does not support this {name}.",
            received=f"{name}={value}",
            expected=expected,
            remedy=f"Omit {name} for the default.",
        )


def bi_mhm(frame_distances: Tensor) -> Tensor:
    """Return ``sum_t min_s + sum_s min_t``, ``(...,T,T')`` to ``(...)``.

    This sums the distance of each frame to its nearest frame in the other video.
    """
    return frame_distances.amin(dim=-1).sum(dim=-1) + frame_distances.amin(dim=-2).sum(dim=-1)


class BiMHM(FrameDistanceHead):
    """Matching of each frame with its nearest frame of the other video, in both directions.

    ``BiMHM()`` is DMGAL's released form; see `FrameDistanceHead` for the options.
    """

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        return bi_mhm(frame_distances)

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        return query_frames + support_frames


def frame_aligned(frame_distances: Tensor) -> Tensor:
    """Sum the distances of frames with the same index, ``(...,T,T)`` to ``(...)``."""
    query_frames, support_frames = frame_distances.shape[-2:]
    check_equal_frames("Frame-aligned matching", support_frames, query_frames)
    return frame_distances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


class FrameAligned(FrameDistanceHead):
    """Cosine distance of frames with the same index; see `FrameDistanceHead` for the options."""

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        return frame_aligned(frame_distances)

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        return query_frames
