"""STRM (CVPR 2022): enriches patches within a frame, mixes frames within a video, then applies TRX to frame pairs.

A second metric on the patch-enriched frames is the distance of each query tuple to the nearest tuple of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import SharedDropout, load_reference_state, sinusoidal_position_code
from ...backbones.state import VideoState
from ..episode import EpisodeOutput, TaskTargets
from .frame_distance import at_least_float32, check_maps
from .temporal_mixer import TemporalMixer
from .trx import REFERENCE_IGNORED, TRX
from .tuples import TupleLinear, shots_of_classes

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
    "attn_pat.key_proj.bias",  # shifts all scores of a query equally, so the softmax ignores it
    *(f"transformers.0.{name}" for name in REFERENCE_IGNORED),
)


class PatchEnrichment(nn.Module):
    """Patch enrichment: 4x4 pooled patches, self-attention among a frame's patches, a bottleneck, the patch mean.

    The attention is not scaled, and its factor ``gamma`` starts at zero.

    Args:
        channels: width ``C`` of the maps.
        dropout: probability of dropout of the position-coded patches.
    """

    def __init__(self, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = SharedDropout(dropout)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)  # a bias would shift all scores of a query equally
        self.value = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))
        half = channels // 2
        layers = nn.Linear(channels, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), nn.Linear(half, channels)
        self.bottleneck = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Return enriched frame features ``(V,T,C)`` of maps ``(V,T,C,H,W)``."""
        pooled = functional.adaptive_max_pool2d(maps.flatten(0, 1), 4)  # (V*T,C,4,4)
        patches = rearrange(pooled, "(v t) c h w -> v t (h w) c", v=maps.shape[0], t=maps.shape[1])
        patches = self.dropout(patches + sinusoidal_position_code(*patches.shape[2:], like=patches))
        query, key, value = self.query(patches), self.key(patches), self.value(patches)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        enriched = patches + self.gamma * attended
        enriched = enriched + self.bottleneck(enriched)
        return enriched.mean(dim=2)


class STRM(nn.Module):
    """Head with TRX's logits plus ``tuple_weight`` times those of the nearest tuples, trained with separate losses.

    The tuple embedding for the nearest tuples is part of the model. The released code stores it in a plain list, so it
    is neither trained nor saved.

    Args:
        channels: width ``C`` of the patch maps.
        num_frames: number of frames per video.
        cardinality: number of frames per tuple.
        width: width of TRX's keys and values.
        tuple_weight: weight of the nearest tuples' logits in the prediction.
        dropout: probability of all dropouts of the released code.
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
        """Return TRX's state and ``tuples`` ``(V,N,C//2)`` of patch maps ``(V,T,C,H,W)``."""
        check_maps(self, features)
        frames = self.enrichment(features)  # (V,T,C)
        tuples = self.tuple_embedding(self.dropout(frames)).relu()
        coded = self.dropout(frames + sinusoidal_position_code(*frames.shape[1:], like=frames))
        return VideoState(self.matcher.prepare(self.mixer(coded)), tuples=tuples)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` and, given targets, losses ``cross_entropy`` (of TRX) and ``nearest_tuples``."""
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

        Released checkpoints lack the tuple embedding, ``tuple_classifier.clsW``, which then keeps its weights.
        """
        current_embedding = {f"{_TUPLES}.{name}": tensor for name, tensor in self.tuple_embedding.state_dict().items()}
        load_reference_state(self, {**current_embedding, **state}, _REFERENCE_NAMES, _REFERENCE_IGNORED)


def nearest_tuple_distances(query: Tensor, support: Tensor, labels: Tensor) -> Tensor:
    """Return the Euclidean distance to the nearest tuple of each class, averaged over a query's tuples, ``(Q,n_way)``.

    Query tuples are ``(Q,N,E)``, support tuples ``(S,N,E)`` and labels ``(S,)``. A matrix product finds the nearest
    tuples but rounds small distances, so their distances are then computed exactly.
    """
    shots, is_shot = shots_of_classes(labels, len(support))  # (n_way,K)
    tokens = query.flatten(0, 1)  # (Q*N,E)
    with torch.no_grad():
        distances, nearest = torch.cdist(tokens.expand(len(support), -1, -1), support).min(dim=-1)  # (S,Q*N)
        by_shot = distances[shots].masked_fill(~is_shot[..., None], torch.inf)  # (n_way,K,Q*N)
        video = shots.gather(1, by_shot.argmin(dim=1))  # (n_way,Q*N)
        index = nearest.gather(0, video)  # (n_way,Q*N)
    distances = torch.linalg.vector_norm(tokens - support[video, index], dim=-1)  # (n_way,Q*N)
    return distances.unflatten(1, query.shape[:2]).mean(dim=-1).T
