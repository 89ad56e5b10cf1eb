"""HyRSM (CVPR 2022): attention among the frames of a video, then among the videos of a task, then Bi-MHM.

Each query and the support videos attend to each other, so the support's frames depend on the query. They do so only
through one relation vector per video, which `HyRSM.compare` adds to the mapped frames. All earlier steps run once per
video.

With several shots, each support video takes part in the relation, and distances are averaged over a class's videos. The
authors' 5-shot model differs: it relates and matches the mean of a class's enriched videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import SharedDropout, load_reference_state
from ...backbones.state import VideoState
from ..episode import EpisodeOutput, TaskTargets
from .frame_attention import FrameAttention, heads_apart, scaled_position_code
from .frame_distance import at_least_float32, bi_mhm, center_frames, check_frames, check_option, class_means

_REFERENCE_NAMES = {
    "temporal_atte_before.norm": "frame_attention.norm",
    "temporal_atte_before.fn.to_qkv": "frame_attention.qkv",
    "temporal_atte_before.fn.to_out.0": "frame_attention.out",
    "temporal_atte.w_qs": "relation.query",
    "temporal_atte.w_ks": "relation.key",
    "temporal_atte.w_vs": "relation.value",
    "temporal_atte.fc": "relation.out",
    "temporal_atte.layer_norm": "relation.norm",
    "layer2.0": "fusion",
    "classification_layer": "base_classifier",
}


class VideoRelation(nn.Module):
    """Multi-head attention among the videos of a task, one vector each, with a residual, then layer norm.

    Args:
        width: width ``D`` of the vectors.
        num_heads: number of attention heads; must divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.attention_dropout, self.dropout = (SharedDropout(p, video_dim=0) for p in (0.1, 0.05))
        for projection in (self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=math.sqrt(2.0 / (width + width // num_heads)))
        nn.init.xavier_normal_(self.out.weight)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Relate each query of ``(Q,D)`` alone with all support videos ``(S,D)``.

        Return support vectors for each query ``(Q,S,D)``, and query vectors ``(Q,D)``.
        """
        tokens = _append_each_query(support, query)  # (Q,S+1,D)
        queries, keys, values = (
            heads_apart(_append_each_query(layer(support), layer(query)), self.num_heads)  # (Q,heads,S+1,D/heads)
            for layer in (self.query, self.key, self.value)
        )
        scores = queries @ keys.mT / math.sqrt(keys.shape[-1])  # (Q,heads,S+1,S+1)
        attended = self.attention_dropout(scores.softmax(dim=-1)) @ values  # (Q,heads,S+1,D/heads)
        attended = self.out(rearrange(attended, "q h n d -> q n (h d)"))  # (Q,S+1,D)
        related = self.norm(self.dropout(attended) + tokens)
        return related[:, :-1], related[:, -1]


class HyRSM(nn.Module):
    """Head with ``logits = -BiMHM`` of frames plus relation vectors, with plain cosines, averaged over shots.

    With ``num_base_classes`` it has the loss ``base_classes``, which classifies each frame into its video's base class.
    Its weight in the authors' 1-shot configurations is 0.15 on SSv2-Small (our default), HMDB51 and UCF101, 0.4 on
    Kinetics, and 0.6 on SSv2-Full.

    Args:
        channels: width ``D`` of the frame features, a multiple of ``num_heads``.
        num_heads: number of heads of both attentions.
        num_base_classes: number of training classes; None for no base classifier.
        feature_scale: see `scaled_position_code`; the authors use 2048 on Kinetics.
        code_scale: see `scaled_position_code`; the authors use 0.01 on Kinetics.
        center: ``"none"`` (published); ``"video"`` (ours) subtracts a video's mean over frames from the mapped frames,
            before bias and relation are added, which removes static content.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"base_classes": 0.15}

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        num_base_classes: int | None = None,
        feature_scale: float = 10.0,
        code_scale: float = 1.0,
        center: Literal["none", "video"] = "none",
    ) -> None:
        super().__init__()
        check_option(self, "center", center, ("none", "video"))
        self.center = center
        self.feature_scale, self.code_scale = feature_scale, code_scale
        self.dropout = SharedDropout(0.1, video_dim=0)
        self.frame_attention = FrameAttention(channels, num_heads, dropout=0.2)
        self.relation = VideoRelation(channels, num_heads)
        self.fusion = nn.Linear(2 * channels, channels)
        self.base_classifier = None if num_base_classes is None else nn.Linear(channels, num_base_classes)

    def prepare(self, features: Tensor) -> VideoState:
        """Return enriched ``frames`` and their half of the fusion ``mapped``, both ``(V,T,D)``, from ``(V,T,D)``."""
        check_frames(self, features)
        coded = self.dropout(scaled_position_code(features, self.feature_scale, self.code_scale))
        frames = self.frame_attention(coded).relu()
        mapped = functional.linear(frames, self.fusion.weight.chunk(2, dim=1)[0])
        if self.center == "video":
            mapped = center_frames(mapped)
        return VideoState(frames=frames, mapped=mapped + self.fusion.bias)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` and, given targets with classes, the loss ``base_classes``."""
        support_relation, query_relation = self.relation(support["frames"].mean(dim=1), query["frames"].mean(dim=1))
        related_support = support["mapped"] + self._map_relation(support_relation)  # (Q,S,T,D)
        related_query = query["mapped"] + self._map_relation(query_relation)  # (Q,T,D)
        losses = {} if targets is None else self._losses(support, query, targets)
        with torch.autocast(labels.device.type, enabled=False):
            related_support, related_query = at_least_float32(related_support), at_least_float32(related_query)
            distances = bi_mhm(_frame_distances(related_query, related_support))  # (Q,S)
            return EpisodeOutput(-class_means(distances.T, labels).T, losses)

    def base_class_logits(self, state: VideoState) -> Tensor:
        """Return logits of each frame, ``(V,T,num_base_classes)``; requires a base classifier."""
        assert self.base_classifier is not None
        return self.base_classifier(state["frames"])

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released code; ignore its base classifier if there is none here."""
        fusion_key = "layer2.0.weight"  # a convolution with kernel size 1
        state = {key: tensor.squeeze(-1) if key == fusion_key else tensor for key, tensor in state.items()}
        ignored = ["pe.pe"]
        if self.base_classifier is None:
            ignored += ["classification_layer.weight", "classification_layer.bias"]
        load_reference_state(self, state, _REFERENCE_NAMES, ignored)

    def _map_relation(self, relation: Tensor) -> Tensor:
        """Apply the relation's half of the fusion, ``(...,D)`` to ``(...,1,D)``, shared by all frames of a video."""
        return functional.linear(relation.relu(), self.fusion.weight.chunk(2, dim=1)[1]).unsqueeze(-2)

    def _losses(self, support: VideoState, query: VideoState, targets: TaskTargets) -> dict[str, Tensor]:
        if self.base_classifier is None or targets.support_classes is None or targets.query_classes is None:
            return {}
        logits = torch.cat([self.base_class_logits(state) for state in (support, query)])  # (S+Q,T,num_base_classes)
        classes = torch.cat((targets.support_classes, targets.query_classes)).repeat_interleave(logits.shape[1])
        return {"base_classes": functional.cross_entropy(at_least_float32(logits.flatten(0, 1)), classes)}


def _append_each_query(support: Tensor, query: Tensor) -> Tensor:
    """Return the support ``(S,D)`` followed by one query of ``(Q,D)`` each, ``(Q,S+1,D)``."""
    return torch.cat((support.expand(len(query), -1, -1), query[:, None]), dim=1)


def _frame_distances(query: Tensor, support: Tensor) -> Tensor:
    """Return ``1 - cosine`` ``(Q,S,T,T')`` of query frames ``(Q,T,D)`` and their own support ``(Q,S,T',D)``."""
    products = (query @ support.flatten(1, 2).mT).unflatten(-1, support.shape[1:3])  # (Q,T,S,T')
    norms = query.norm(dim=-1)[:, :, None, None] * support.norm(dim=-1)[:, None]  # (Q,T,S,T')
    return (1 - products / norms.masked_fill(norms == 0, 1.0)).transpose(1, 2)
