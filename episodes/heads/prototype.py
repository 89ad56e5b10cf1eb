"""Prototypical networks (NeurIPS 2017) on videos: the mean over frames, the mean over shots, the nearest class.

No time is left after the first mean, so this is the floor under every head that matches frames.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput
from .frame_distance import at_least_float32, check_frames, check_option, class_means, frame_distances

Metric = Literal["cosine", "euclidean"]


class Prototype(nn.Module):
    """``logits = -distance`` of a video's mean frame feature to the means of the classes.

    There is no centering over a video's frames here, as in `FrameDistanceHead`: the mean of centered frames is zero.

    Args:
        metric: ``"cosine"``: ``1 - cos``; ``"euclidean"``: the squared distance, as in the paper.
        logit_scale: None for the published logits; otherwise the initial value of a factor, and squared distances are
            divided by the features' width, so that it means the same for any width. Ours.
        learn_scale: whether a given ``logit_scale`` is trained, as ``exp(s)``.
    """

    pair_scores = "one_shot"

    def __init__(self, metric: Metric = "cosine", logit_scale: float | None = None, learn_scale: bool = True) -> None:
        super().__init__()
        check_option("metric", metric, ("cosine", "euclidean"))
        if logit_scale is not None and logit_scale <= 0:
            raise DmgalError(
                "A prototype head got a number that it cannot use.",
                received=f"logit_scale={logit_scale}",
                expected="logit_scale > 0 or None",
                remedy="Leave it out for the published form.",
            )
        self.metric = metric
        self.log_scale: Tensor | None = None
        if logit_scale is not None:
            self.log_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]), requires_grad=learn_scale)

    def prepare(self, features: Tensor) -> VideoState:
        """From ``(V,T,D)``: ``mean`` ``(V,D)``, at least float32."""
        check_frames(self, features)
        return VideoState(mean=at_least_float32(features).mean(dim=1))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Logits ``(Q,n_way)`` from `prepare` of ``S`` and ``Q`` videos and the support's labels ``(S,)``."""
        with torch.autocast(labels.device.type, enabled=False):
            logits = -self._distances(query["mean"], class_means(support["mean"], labels))
            if self.log_scale is not None:
                logits = self.log_scale.to(logits.dtype).exp() * logits
        return EpisodeOutput(logits)

    def _distances(self, query: Tensor, prototypes: Tensor) -> Tensor:
        """``(Q,D)`` and ``(n_way,D)`` to ``(Q,n_way)``."""
        if self.metric == "cosine":
            return frame_distances(query[:, None], prototypes[:, None], eps=0.0).flatten(1)  # of one frame each
        squared = (query[:, None] - prototypes).square()  # (Q,n_way,D); by a product, near distances were rounding
        return squared.sum(dim=-1) if self.log_scale is None else squared.mean(dim=-1)
