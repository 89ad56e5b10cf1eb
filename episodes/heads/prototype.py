"""Prototypical networks (NeurIPS 2017) on videos: mean over frames, mean over shots, nearest class.

The mean over frames removes all temporal information, so this is the baseline for heads that match frames.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ...backbones.state import VideoState
from ..episode import EpisodeOutput
from .frame_distance import (
    at_least_float32,
    check_frames,
    check_number,
    check_option,
    class_means,
    frame_distances,
)

Metric = Literal["cosine", "euclidean"]


class Prototype(nn.Module):
    """Head with ``logits = -distance`` from a video's mean frame feature to the class means.

    Unlike `FrameDistanceHead`, it has no centering over a video's frames: the mean of centered frames is zero.

    Args:
        metric: ``"cosine"`` for ``1 - cos``, ``"euclidean"`` for the squared distance as in the paper.
        logit_scale: None for the published logits, otherwise the initial value of a factor (ours). Squared distances
            are then divided by the feature width, so that the factor means the same for any width.
        learn_scale: train the ``logit_scale``, as ``exp(s)``.
    """

    pair_scores = "one_shot"

    def __init__(self, metric: Metric = "cosine", logit_scale: float | None = None, learn_scale: bool = True) -> None:
        super().__init__()
        check_option(self, "metric", metric, ("cosine", "euclidean"))
        check_number(self, "logit_scale", logit_scale, logit_scale is None or logit_scale > 0, "more than 0, or None")
        self.metric = metric
        self.log_scale: Tensor | None = None
        if logit_scale is not None:
            self.log_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]), requires_grad=learn_scale)

    def prepare(self, features: Tensor) -> VideoState:
        """Return ``mean`` ``(V,D)`` of frames ``(V,T,D)``, at least float32."""
        check_frames(self, features)
        return VideoState(mean=at_least_float32(features).mean(dim=1))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        with torch.autocast(labels.device.type, enabled=False):
            logits = -self._distances(query["mean"], class_means(support["mean"], labels))
            if self.log_scale is not None:
                logits = self.log_scale.to(logits.dtype).exp() * logits
        return EpisodeOutput(logits)

    def _distances(self, query: Tensor, prototypes: Tensor) -> Tensor:
        """Return distances ``(Q,n_way)`` from ``(Q,D)`` and ``(n_way,D)``."""
        if self.metric == "cosine":
            return frame_distances(query[:, None], prototypes[:, None], eps=0.0).flatten(1)  # one frame per video
        squared = (query[:, None] - prototypes).square()  # (Q,n_way,D); a matrix product would round small distances
        return squared.sum(dim=-1) if self.log_scale is None else squared.mean(dim=-1)
