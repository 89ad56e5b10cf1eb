"""Head that compares how clips change: cosine similarity of differences between the averages of consecutive segments.

With the frame features ``f`` of a clip in ``K`` segments ``S_1`` to ``S_K``:

    m_k = mean of f over S_k
    motion = (m_2 - m_1, ..., m_K - m_(K-1)) / (its norm + 0.01 * norm of the mean frame)
    logit of a class = scale * mean over its shots of <motion of the query, motion of the shot>

Whatever stays the same in all frames cancels out. Averages over segments suppress noise of single frames, as in the
segments of TSN (Wang et al., ECCV 2016). A clip in reverse has the negated differences in reverse order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dmgal.backbones import VideoState
from dmgal.episodes import EpisodeOutput
from dmgal.episodes.heads import HEADS
from dmgal.errors import DmgalError

STILL = 0.01
"""Share of the mean frame's norm that is added to the norm of the motion, so that the noise of a still clip stays
small."""


class MotionCosine(nn.Module):
    """Cosine similarity of averaged temporal differences.

    Args:
        segments: number of segments ``K`` of a clip. A clip of fewer frames repeats some.
        logit_scale: initial value of the learned scale.

    Raises:
        DmgalError: an option is out of range.
    """

    pair_scores = "mean"  # logits are means of scores of pairs of videos, so `dmgal evaluate --exact` works

    def __init__(self, segments: int = 4, logit_scale: float = 10.0) -> None:
        super().__init__()
        if segments < 2 or logit_scale <= 0:
            raise DmgalError(
                "MotionCosine does not accept these options.",
                received=f"segments={segments}, logit_scale={logit_scale}",
                expected="segments of at least 2, and a logit_scale above 0",
                remedy="Change the options.",
            )
        self.segments = segments
        self.log_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]))

    def prepare(self, features: Tensor) -> VideoState:
        """Return ``motion`` ``(V, (K-1)*D)`` of frame features ``(V, T, D)``. Each video is processed alone."""
        frames = features.to(torch.promote_types(features.dtype, torch.float32))  # small differences of large numbers
        means = F.adaptive_avg_pool1d(rearrange(frames, "v t d -> v d t"), self.segments)
        motion = rearrange(means.diff(dim=-1), "v d k -> v (k d)")
        appearance = frames.mean(dim=1).norm(dim=-1, keepdim=True)
        norm = motion.norm(dim=-1, keepdim=True) + STILL * appearance
        return VideoState(motion=motion / norm.clamp_min(1e-6))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q, n_way)`` of ``Q`` query videos, from ``S`` support videos and their labels ``(S,)``."""
        with torch.autocast(labels.device.type, enabled=False):
            similarities = query["motion"] @ support["motion"].T  # (Q, S)
            members = F.one_hot(labels).to(similarities.dtype)  # (S, n_way)
            means = similarities @ (members / members.sum(dim=0))
            return EpisodeOutput(self.log_scale.to(means.dtype).exp() * means)


HEADS["MotionCosine"] = MotionCosine
