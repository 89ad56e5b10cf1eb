"""α-distance correlation of TS-FSAR (Long et al., arXiv 2512.11340) between frames, without its learned parts.

The channels of a frame are random variables, and its patches are samples of them. A frame is described by the distances
of all pairs of channels, which also vary with nonlinear dependencies. Two frames are compared by the cosine of their
descriptions, their α-distance correlation.

The paper then weights all pairs of frames by a matrix that a trained layer predicts for the task, and the patches by
their similarity to the class token of its side network. Here a matcher without weights takes both places.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ...backbones.state import VideoState
from ..episode import EpisodeOutput
from .frame_distance import BiMHM, FrameDistanceHead, at_least_float32, check_maps, check_number

SMALLEST = 1e-5
"""Constant that the released code adds to squared distances before the power."""


def channel_distances(samples: Tensor, alpha: float = 0.4) -> Tensor:
    """Return the double-centered powers of distances between channels, ``(B,P,C)`` to ``(B,C*(C+1)/2)``.

    Args:
        samples: ``P`` samples of ``C`` channels.
        alpha: exponent of the mean squared distances.
    """
    gram = samples.mT @ samples / (2 * samples.shape[1])
    norms = gram.diagonal(dim1=1, dim2=2)
    squared = (norms[:, :, None] + norms[:, None] - 2 * gram).clamp_min(0)
    powers = (squared + SMALLEST) ** alpha
    rows = powers.mean(dim=1, keepdim=True)
    centered = powers - rows - rows.mT + rows.mean(dim=2, keepdim=True)
    first, second = torch.triu_indices(*powers.shape[1:], device=powers.device)
    return centered[:, first, second]


class DistanceCorrelation(nn.Module):
    """Head without weights that compares frames by the distance correlation of their patch tokens.

    The state of a frame has ``C*(C+1)/2`` numbers: 80 thousand at 400 channels, 300 thousand at the 768 of ViT-B/16.

    Args:
        alpha: exponent of the squared distances, above 0 and below 1. 0.4 in the released code.
        matcher: head that matches the frames; ``BiMHM()`` on the mean of the shots if None.
    """

    def __init__(self, alpha: float = 0.4, matcher: FrameDistanceHead | None = None) -> None:
        super().__init__()
        check_number(self, "alpha", alpha, 0 < alpha < 1, "more than 0 and less than 1")
        self.alpha = alpha
        self.matcher = BiMHM(shots="prototype") if matcher is None else matcher

    @property
    def pair_scores(self) -> Literal["mean", "one_shot"]:
        """The rule of the matcher."""
        return self.matcher.pair_scores

    def prepare(self, features: Tensor) -> VideoState:
        """Return the matcher's state of the descriptions ``(V,T,C*(C+1)/2)`` of patch maps ``(V,T,C,H,W)``."""
        check_maps(self, features)
        with torch.autocast(features.device.type, enabled=False):
            samples = rearrange(at_least_float32(features), "v t c h w -> (v t) (h w) c")
            frames = channel_distances(samples, self.alpha)
            return self.matcher.prepare(rearrange(frames, "(v t) d -> v t d", t=features.shape[1]))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        return self.matcher.compare(support, labels, query)
