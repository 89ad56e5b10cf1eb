"""TEAM (CVPR 2025): learned patterns gather the frames of a video, and videos are compared pattern by pattern.

S. Lee et al., "Temporal Alignment-Free Video Matching for Few-shot Action Recognition", arXiv 2504.05956. Each pattern
attends to the frames of a video and becomes two tokens of it. Its instance token has what the pattern found added, its
exclusive token has it subtracted. Frames are never aligned, so videos may differ in length.

Logits, losses and gradients equal those of the released code on random weights without dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import SharedDropout, load_reference_state, sinusoidal_position_code
from ...backbones.state import VideoState
from ..episode import EpisodeOutput, TaskTargets
from .frame_distance import (
    at_least_float32,
    center_frames,
    check_frames,
    check_number,
    check_option,
    class_means,
)

REFERENCE_NAMES = {"AP": "patterns", "ln": "norm", "mlp.inp_fc": "mlp.0", "mlp.out_fc": "mlp.2"}
SMALLEST_NORM = 1e-8
"""Lower limit of a token's norm in a cosine. A token of zeros has cosine 0 with every other."""


class TEAM(nn.Module):
    """Head with ``logits = -(instance distance + exclusive distance)``, trained with one cross-entropy for each.

    The frames of a class's shots are averaged before they become tokens. The tokens of a class are adapted to the task:
    they move away from each other class in proportion to the cosine of both classes' tokens, and are then averaged.

    A distance is ``1 - cosine``, summed over patterns. The instance distance is that of the instance tokens of query
    and class. The exclusive distance compares the query's exclusive tokens with the instance tokens of all other
    classes and takes the largest distance. It is averaged with the reverse, instance tokens of the query with exclusive
    tokens of the others. In a task of one class nothing is adapted, and the exclusive distance is 0.

    Dropout differs from the released code: it draws one mask for all videos of a call, and the adaptation does not draw
    again.

    Args:
        channels: width ``D`` of the frame features.
        num_patterns: number of patterns ``M``, 50 to 80 in the authors' scripts.
        dropout: probability of dropout of coded frames, of attention, and of what a pattern found.
        center: ``"none"`` (published); ``"video"`` (ours) subtracts a video's mean over frames from its frames, which
            removes static content.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"exclusive": 1.0}

    def __init__(
        self,
        channels: int,
        num_patterns: int = 60,
        dropout: float = 0.1,
        center: Literal["none", "video"] = "none",
    ) -> None:
        super().__init__()
        check_option(self, "center", center, ("none", "video"))
        check_number(self, "num_patterns", num_patterns, num_patterns >= 1, "at least 1")
        self.center = center
        self.scale = (channels / 8) ** -0.5  # that of 8 heads, although the released attention has one
        self.patterns = nn.Parameter(torch.randn(num_patterns, channels))
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.dropout = SharedDropout(dropout, video_dim=0)

    def prepare(self, features: Tensor) -> VideoState:
        """Return the ``frames`` ``(V,T,D)`` of videos, and their ``instance`` and ``exclusive`` tokens ``(V,M,D)``."""
        check_frames(self, features)
        if self.center == "video":
            features = center_frames(features)
        gathered = self._gather(features)
        return VideoState(frames=features, instance=self._tokens(gathered), exclusive=self._tokens(-gathered))

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` and, given targets, losses ``cross_entropy`` (of instance) and ``exclusive``."""
        instance, exclusive = self._class_tokens(class_means(support["frames"], labels))  # (n_way,M,D) each
        with torch.autocast(labels.device.type, enabled=False):
            reverse = farthest_other(token_distances(query["instance"], exclusive))
            exclusive_distance = (farthest_other(token_distances(query["exclusive"], instance)) + reverse) / 2
            parts = {"cross_entropy": -token_distances(query["instance"], instance), "exclusive": -exclusive_distance}
            logits = parts["cross_entropy"] + parts["exclusive"]
            if targets is None:
                return EpisodeOutput(logits)
            losses = {name: functional.cross_entropy(part, targets.query_labels) for name, part in parts.items()}
        return EpisodeOutput(logits, losses)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released module ``DPM``."""
        state = {key: tensor.squeeze(0) if key == "AP" else tensor for key, tensor in state.items()}
        load_reference_state(self, state, REFERENCE_NAMES, ["pe.pe"])

    def _gather(self, frames: Tensor) -> Tensor:
        """Return what each pattern finds in the frames ``(V,T,D)`` of a video, ``(V,M,D)``."""
        code = sinusoidal_position_code(*frames.shape[1:], like=frames)
        keys = self.norm(self.dropout(frames + code))  # also the values
        scores = self.scale * self.norm(self.patterns) @ keys.mT  # (V,M,T)
        return self.dropout(self.dropout(scores.softmax(dim=-1)) @ keys)

    def _tokens(self, gathered: Tensor) -> Tensor:
        """Return tokens ``(...,M,D)`` of what was gathered, ``(...,M,D)``."""
        tokens = self.patterns + gathered
        return (tokens + self.mlp(tokens)).relu()

    def _class_tokens(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return adapted instance and exclusive tokens ``(n_way,M,D)`` of classes, from mean frames ``(n_way,T,D)``."""
        gathered = self._gather(frames)
        if len(frames) == 1:
            return self._tokens(gathered), self._tokens(-gathered)
        difference = _of_others(gathered) - gathered[:, None]  # (n_way,n_way-1,M,D)
        instance, exclusive = (self._adapted(sign * gathered, sign * difference) for sign in (1, -1))
        return instance, exclusive

    def _adapted(self, gathered: Tensor, difference: Tensor) -> Tensor:
        """Return tokens ``(n_way,M,D)``, from the classes' own and their differences to each other class."""
        tokens = at_least_float32(self._tokens(gathered))
        cosines = functional.cosine_similarity(_of_others(tokens), tokens[:, None], dim=-1, eps=SMALLEST_NORM)
        overlap = cosines.to(difference.dtype)[..., None]  # (n_way,n_way-1,M,1)
        return self._tokens(gathered[:, None] - overlap * difference).mean(dim=1)


def token_distances(query: Tensor, classes: Tensor) -> Tensor:
    """Return ``1 - cosine`` of tokens ``(Q,M,D)`` and ``(n_way,M,D)``, summed over equal patterns, ``(Q,n_way)``."""
    unit = (functional.normalize(at_least_float32(tokens), dim=-1, eps=SMALLEST_NORM) for tokens in (query, classes))
    unit_query, unit_classes = (tokens.flatten(1) for tokens in unit)
    return query.shape[1] - unit_query @ unit_classes.mT


def farthest_other(distances: Tensor) -> Tensor:
    """Return the largest distance to any other class, of ``(Q,n_way)`` to ``(Q,n_way)``; 0 if there is no other."""
    if distances.shape[1] == 1:
        return torch.zeros_like(distances)
    return _of_others(distances.mT).amax(dim=1).mT


def _of_others(values: Tensor) -> Tensor:
    """Return the values of all other classes for each class, ``(n_way,...)`` to ``(n_way,n_way-1,...)``."""
    classes = torch.arange(len(values), device=values.device)
    others = classes[:-1] + (classes[:-1] >= classes[:, None])  # (n_way,n_way-1)
    return values[others]
