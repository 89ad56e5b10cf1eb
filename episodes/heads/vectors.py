"""Base class of heads that classify one vector per video, for transfer with features that are not trained further.

Under domain shift such heads often beat heads that match frames (CDFSL-V and arXiv 2406.01073 compare them). The mean
over frames has no order, so ``frames="all"`` joins the frames in their order instead.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...backbones.state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput
from .frame_distance import at_least_float32, check_option

Frames = Literal["mean", "all"]
SMALLEST_NORM = 1e-6
"""Vectors with a smaller norm, such as those of black videos, are not scaled to length 1."""


class VectorHead(nn.Module):
    """Head without parameters that classifies normalized vectors. A subclass defines ``classify``.

    Args:
        frames: ``"mean"`` averages the features over frames, ``"all"`` joins the features of all frames.
    """

    transductive = False
    """True if the logits of a query depend on the other queries of the task."""

    def __init__(self, frames: Frames = "mean") -> None:
        super().__init__()
        check_option(self, "frames", frames, ("mean", "all"))
        self.frames = frames

    def prepare(self, features: Tensor) -> VideoState:
        """Return the ``vector`` of each video, of length 1, from ``(V,T,D)`` or maps ``(V,T,C,H,W)``.

        Maps are averaged over their patches.
        """
        if features.dim() not in (3, 5):
            raise DmgalError(
                f"{type(self).__name__} reads the features or maps of frames.",
                received=f"a tensor of shape {tuple(features.shape)}",
                expected="(videos, frames, width) or (videos, frames, channels, height, width)",
                remedy="Use a FrameEncoder.",
            )
        values = at_least_float32(features)
        values = values.mean(dim=(3, 4)) if values.dim() == 5 else values
        vectors = values.mean(dim=1) if self.frames == "mean" else values.flatten(1)
        return VideoState(vector=functional.normalize(vectors, dim=-1, eps=SMALLEST_NORM))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        with torch.autocast(labels.device.type, enabled=False):
            vectors = at_least_float32(support["vector"]), at_least_float32(query["vector"])
            return EpisodeOutput(self.classify(vectors[0], labels, vectors[1]))

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        """Return logits ``(Q,n_way)`` from vectors ``(S,D)`` and ``(Q,D)`` and support labels ``(S,)``."""
        raise NotImplementedError


def with_constant(support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products ``(S,S)`` and ``(Q,S)`` of vectors with a 1 appended, which stands for a bias."""
    return support @ support.T + 1, query @ support.T + 1
