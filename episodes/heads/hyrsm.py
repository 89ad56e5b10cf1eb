"""HyRSM (CVPR 2022): frames attend within a video, videos within a task, then Bi-MHM.

For each query the support videos and that query attend to each other, so the support's frames depend on the query; but
only through one relation vector per video, which is added to the mapped frames in `HyRSM.compare`. All that is in front
of it is prepared once per video.

With several shots every support video stands for itself in the relation, and distances are averaged over a class's. The
authors' model for 5 shots is another one: it relates and matches the mean of a class's enriched videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.reference_state import load_reference_state
from ...adapters.shared_dropout import SharedDropout
from ...backbones.video_state import VideoState
from ..episode import EpisodeOutput, TaskTargets
from .bi_mhm import bi_mhm
from .frame_attention import FrameAttention, heads_apart, scaled_position_code
from .frame_distance import at_least_float32, center_frames, check_frames, check_option, class_means

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
    """Multi-head attention among the videos of a task, each one vector; residual, then layer norm.

    Args:
        width: ``D`` of the vectors.
        num_heads: must divide the width.
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
        """Each query alone with the whole support.

        Args:
            support: ``(S,D)``.
            query: ``(Q,D)``.

        Returns:
            The support's vectors as each query sees them ``(Q,S,D)``, and the queries' ``(Q,D)``.
        """
        tokens = _with_each(support, query)  # (Q,S+1,D)
        queries, keys, values = (
            heads_apart(_with_each(layer(support), layer(query)), self.num_heads)  # (Q,heads,S+1,D/heads)
            for layer in (self.query, self.key, self.value)
        )
        scores = queries @ keys.mT / math.sqrt(keys.shape[-1])  # (Q,heads,S+1,S+1)
        attended = self.attention_dropout(scores.softmax(dim=-1)) @ values  # (Q,heads,S+1,D/heads)
        attended = self.out(attended.transpose(1, 2).flatten(2))  # (Q,S+1,D)
        related = self.norm(self.dropout(attended) + tokens)
        return related[:, :-1], related[:, -1]


class HyRSM(nn.Module):
    """``logits = -BiMHM`` of the frames with their relation vectors, with plain cosines, mean over shots.

    Where it knows the number of base classes, it has the loss ``base_classes``: each frame names the base class of its
    video. Its weight in the authors' 1-shot configurations: 0.15 on SSv2-Small (our default), HMDB51 and UCF101, 0.4 on
    Kinetics, 0.6 on SSv2-Full.

    Args:
        channels: width ``D`` of the frame features; a multiple of ``num_heads``.
        num_heads: of both attentions.
        num_base_classes: training classes; None: no such classifier.
        feature_scale, code_scale: of the position code, see `scaled_position_code`; on Kinetics the authors take 2048
            and 0.01.
        center: ``"video"``: the mapped frames minus their video's mean over frames, before bias and relation are added,
            which removes what does not move; ``"none"``: as published. Ours.
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
        check_option("center", center, ("none", "video"))
        self.center = center
        self.feature_scale, self.code_scale = feature_scale, code_scale
        self.dropout = SharedDropout(0.1, video_dim=0)
        self.frame_attention = FrameAttention(channels, num_heads, dropout=0.2)
        self.relation = VideoRelation(channels, num_heads)
        self.fusion = nn.Linear(2 * channels, channels)
        self.base_classifier = None if num_base_classes is None else nn.Linear(channels, num_base_classes)

    def prepare(self, features: Tensor) -> VideoState:
        """From ``(V,T,D)``: enriched ``frames``, the same ``mapped`` by their half of the fusion; both ``(V,T,D)``."""
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
        """Logits ``(Q,n_way)``; given targets with classes, the loss ``base_classes``."""
        support_relation, query_relation = self.relation(support["frames"].mean(dim=1), query["frames"].mean(dim=1))
        related_support = support["mapped"] + self._mapped(support_relation)  # (Q,S,T,D)
        related_query = query["mapped"] + self._mapped(query_relation)  # (Q,T,D)
        losses = {} if targets is None else self._losses(support, query, targets)
        with torch.autocast(labels.device.type, enabled=False):
            related_support, related_query = at_least_float32(related_support), at_least_float32(related_query)
            distances = bi_mhm(_frame_distances(related_query, related_support))  # (Q,S)
            return EpisodeOutput(-class_means(distances.T, labels).T, losses)

    def base_class_logits(self, state: VideoState) -> Tensor:
        """Of each frame, ``(V,T,num_base_classes)``; only where there is such a classifier."""
        assert self.base_classifier is not None
        return self.base_classifier(state["frames"])

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released code; without a base classifier, theirs is left out."""
        convolution = "layer2.0.weight"  # of kernel size 1: a matrix
        state = {key: tensor.squeeze(-1) if key == convolution else tensor for key, tensor in state.items()}
        ignored = ["pe.pe"]
        if self.base_classifier is None:
            ignored += ["classification_layer.weight", "classification_layer.bias"]
        load_reference_state(self, state, _REFERENCE_NAMES, ignored)

    def _mapped(self, relation: Tensor) -> Tensor:
        """The relation's half of the fusion, ``(...,D)`` to ``(...,1,D)``, the same for all frames of a video."""
        return functional.linear(relation.relu(), self.fusion.weight.chunk(2, dim=1)[1]).unsqueeze(-2)

    def _losses(self, support: VideoState, query: VideoState, targets: TaskTargets) -> dict[str, Tensor]:
        if self.base_classifier is None or targets.support_classes is None or targets.query_classes is None:
            return {}
        logits = torch.cat([self.base_class_logits(state) for state in (support, query)])  # (S+Q,T,num_base_classes)
        classes = torch.cat((targets.support_classes, targets.query_classes)).repeat_interleave(logits.shape[1])
        return {"base_classes": functional.cross_entropy(at_least_float32(logits.flatten(0, 1)), classes)}


def _with_each(support: Tensor, query: Tensor) -> Tensor:
    """``(S,D)`` and ``(Q,D)`` to ``(Q,S+1,D)``: the whole support and one query."""
    return torch.cat((support.expand(len(query), -1, -1), query[:, None]), dim=1)


def _frame_distances(query: Tensor, support: Tensor) -> Tensor:
    """``1 - cosine`` of each query's frames ``(Q,T,D)`` and those of its own support ``(Q,S,T',D)``: ``(Q,S,T,T')``."""
    products = (query @ support.flatten(1, 2).mT).unflatten(-1, support.shape[1:3])  # (Q,T,S,T')
    norms = query.norm(dim=-1)[:, :, None, None] * support.norm(dim=-1)[:, None]  # (Q,T,S,T')
    return (1 - products / norms.masked_fill(norms == 0, 1.0)).transpose(1, 2)
