"""STRM (CVPR 2022): patches enriched within a frame, frames mixed within a video, then TRX on pairs of frames.

Beside TRX stands a second metric on the patch-enriched frames: the distance of each of the query's tuples to the
nearest tuple of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.position_code import sinusoidal_position_code
from ...adapters.reference_state import load_reference_state
from ...adapters.shared_dropout import SharedDropout
from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput, TaskTargets
from .class_attention import shots_of_classes
from .frame_distance import at_least_float32
from .temporal_mixer import TemporalMixer
from .trx import REFERENCE_IGNORED, TRX
from .tuples import TupleLinear

_TUPLES = "tuple_classifier.clsW"
_REFERENCE_NAMES = {
    "attn_pat": "enrichment",
    "attn_pat.query_proj": "enrichment.query",
    "attn_pat.key_proj": "enrichment.key",
    "attn_pat.value_conv": "enrichment.value",
    "attn_pat.Bot_MLP.inp_fc": "enrichment.bottleneck.0",
    "attn_pat.Bot_MLP.hid_fc": "enrichment.bottleneck.2",
    "attn_pat.Bot_MLP.out_fc": "enrichment.bottleneck.4",
    "fr_enrich.Tok_MLP.inp_fc": "mixer.frames_in",
    "fr_enrich.Tok_MLP.out_fc": "mixer.frames_out",
    "fr_enrich.Bot_MLP.inp_fc": "mixer.channels_in",
    "fr_enrich.Bot_MLP.out_fc": "mixer.channels_out",
    "transformers.0.k_linear": "matcher.projections.0.keys",
    "transformers.0.v_linear": "matcher.projections.0.values",
    "transformers.0.norm_k": "matcher.projections.0.key_norm",
    _TUPLES: "tuple_embedding",
}
_REFERENCE_IGNORED = (
    "attn_pat.pe.pe",
    "fr_enrich.pe.pe",
    "attn_pat.key_proj.bias",  # the same for all keys, so that the softmax does not see it
    *(f"transformers.0.{name}" for name in REFERENCE_IGNORED),
)


class PatchEnrichment(nn.Module):
    """Maps to frame features: 4x4 patches, self-attention among a frame's patches, a bottleneck, the mean of patches.

    The attention is not scaled, and ``gamma`` lets it in from zero.

    Args:
        channels: width ``C`` of the maps.
        dropout: of the position-coded patches.
    """

    def __init__(self, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = SharedDropout(dropout)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # it would add the same to all keys of a patch
        self.value = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))
        half = channels // 2
        layers = nn.Linear(channels, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), nn.Linear(half, channels)
        self.bottleneck = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """``(V,T,C,H,W)`` to ``(V,T,C)``."""
        pooled = functional.adaptive_max_pool2d(maps.flatten(0, 1), 4)  # (V*T,C,4,4)
        patches = pooled.flatten(2).transpose(1, 2).unflatten(0, maps.shape[:2])  # (V,T,16,C)
        patches = self.dropout(patches + sinusoidal_position_code(*patches.shape[2:], like=patches))
        query, key, value = self.query(patches), self.key(patches), self.value(patches)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        enriched = patches + self.gamma * attended
        enriched = enriched + self.bottleneck(enriched)
        return enriched.mean(dim=2)


class STRM(nn.Module):
    """Prediction: TRX's logits plus ``tuple_weight`` times the nearest tuples'. Trained on the two apart.

    The layer in front of the nearest tuples is a part of the model here; the released code keeps it in a plain list,
    so that it neither trains nor is saved.

    Args:
        channels: width ``C`` of the patch maps.
        num_frames: frames of every video.
        cardinality: frames of a tuple.
        width: of TRX's keys and values.
        tuple_weight: of the nearest tuples' logits in the prediction.
        dropout: wherever the released code has one.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"nearest_tuples": 0.1}
    pair_scores = "one_shot"

    def __init__(
        self,
        channels: int,
        num_frames: int = 8,
        cardinality: int = 2,
        width: int = 1152,
        tuple_weight: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tuple_weight = tuple_weight
        self.enrichment = PatchEnrichment(channels, dropout)
        self.dropout = SharedDropout(dropout, video_dim=0)
        self.tuple_embedding = TupleLinear(channels, channels // 2, cardinality)
        self.mixer = TemporalMixer(num_frames, channels)
        self.matcher = TRX(channels, (cardinality,), width, dropout)

    def prepare(self, features: Tensor) -> VideoState:
        """From patch maps ``(V,T,C,H,W)``: TRX's state, and ``tuples`` ``(V,N,C//2)``."""
        if features.dim() != 5:
            raise DmgalError(
                "STRM enriches the patches of maps.",
                received=f"a tensor of shape {tuple(features.shape)}",
                expected="(videos, frames, channels, height, width)",
                remedy="Give it the backbone's maps: pooling='map'.",
            )
        frames = self.enrichment(features)  # (V,T,C)
        tuples = self.tuple_embedding(self.dropout(frames)).relu()
        coded = self.dropout(frames + sinusoidal_position_code(*frames.shape[1:], like=frames))
        return VideoState(self.matcher.prepare(self.mixer(coded)), tuples=tuples)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Logits ``(Q,n_way)``; given targets, the losses ``cross_entropy`` (TRX's own) and ``nearest_tuples``."""
        cross_attention = self.matcher.compare(support, labels, query).logits
        with torch.autocast(labels.device.type, enabled=False):
            nearest = -nearest_tuple_distances(
                at_least_float32(query["tuples"]), at_least_float32(support["tuples"]), labels
            )
            logits = cross_attention + self.tuple_weight * nearest
            if targets is None:
                return EpisodeOutput(logits)
            parts = {"cross_entropy": cross_attention, "nearest_tuples": nearest}
            losses = {name: functional.cross_entropy(part, targets.query_labels) for name, part in parts.items()}
        return EpisodeOutput(logits, losses)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released code.

        Released checkpoints cannot hold the layer of the nearest tuples, ``tuple_classifier.clsW``; it keeps its
        weights where it is missing.
        """
        kept = {f"{_TUPLES}.{name}": tensor for name, tensor in self.tuple_embedding.state_dict().items()}
        load_reference_state(self, {**kept, **state}, _REFERENCE_NAMES, _REFERENCE_IGNORED)


def nearest_tuple_distances(query: Tensor, support: Tensor, labels: Tensor) -> Tensor:
    """The mean over a query's tuples of the Euclidean distance to the nearest tuple of each class.

    The nearest are found by a matrix product, which rounds small distances; their distances are then computed exactly.

    Args:
        query: ``(Q,N,E)``.
        support: ``(S,N,E)``.
        labels: ``(S,)``.

    Returns:
        ``(Q,n_way)``.
    """
    shots, is_shot = shots_of_classes(labels, len(support))  # (n_way,K)
    tokens = query.flatten(0, 1)  # (Q*N,E)
    with torch.no_grad():
        distances, nearest = torch.cdist(tokens.expand(len(support), -1, -1), support).min(dim=-1)  # (S,Q*N)
        by_shot = distances[shots].masked_fill(~is_shot[..., None], torch.inf)  # (n_way,K,Q*N)
        video = shots.gather(1, by_shot.argmin(dim=1))  # (n_way,Q*N)
        place = nearest.gather(0, video)  # (n_way,Q*N)
    distances = torch.linalg.vector_norm(tokens - support[video, place], dim=-1)  # (n_way,Q*N)
    return distances.unflatten(1, query.shape[:2]).mean(dim=-1).T
