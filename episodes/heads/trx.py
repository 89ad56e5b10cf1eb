"""TRX (CVPR 2021): attention from tuples of a query's frames to the tuples of all shots of a class.

The class prototype of a query tuple is the attention-weighted sum of the values of the class's tuples. The distance is
the squared distance between a tuple's value and its prototype, averaged over tuples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...adapters.common import SharedDropout, load_reference_state, sinusoidal_position_code
from ...backbones.state import VideoState
from ..episode import EpisodeOutput
from .frame_distance import at_least_float32, check_frames
from .tuples import TupleLinear, class_attention

REFERENCE_NAMES = {"k_linear": "keys", "v_linear": "values", "norm_k": "key_norm"}
REFERENCE_IGNORED = ("pe.pe", "norm_v.weight", "norm_v.bias", "v_linear.bias")
"""Released weights without effect: values are not normalized, and their bias cancels."""


class TupleProjection(nn.Module):
    """Projection of all tuples of one cardinality to keys and values, of which only keys are normalized.

    Values have no bias. It would cancel in ``v - sum(a v')``, because each row of the attention ``a`` sums to 1.

    Args:
        channels: width ``D`` of the frame features.
        cardinality: number of frames per tuple.
        width: width of keys and values.
    """

    def __init__(self, channels: int, cardinality: int, width: int) -> None:
        super().__init__()
        self.keys = TupleLinear(channels, width, cardinality)
        self.values = TupleLinear(channels, width, cardinality, bias=False)
        self.key_norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(V,N,width)`` of frames ``(V,T,D)``."""
        return self.key_norm(self.keys(frames)), self.values(frames)


class TRX(nn.Module):
    """Head with the negative distances, averaged over cardinalities, as logits.

    The position code is added once for all cardinalities. The released code adds the same code in each.

    Args:
        channels: width ``D`` of the frame features.
        cardinalities: numbers of frames per tuple; the paper uses pairs and triples.
        width: width of keys and values.
        dropout: probability of dropout of the position-coded frames.
    """

    pair_scores = "one_shot"

    def __init__(
        self, channels: int, cardinalities: Sequence[int] = (2, 3), width: int = 1152, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.cardinalities = tuple(cardinalities)
        self.dropout = SharedDropout(dropout, video_dim=0)
        self.projections = nn.ModuleList(TupleProjection(channels, size, width) for size in self.cardinalities)

    def prepare(self, features: Tensor) -> VideoState:
        """Return ``keys_c`` and ``values_c`` ``(V,N,width)``, N = T choose c, per cardinality c, from ``(V,T,D)``."""
        check_frames(self, features)
        code = sinusoidal_position_code(*features.shape[1:], like=features)
        frames = self.dropout(features + code)
        state = VideoState()
        for size, project in zip(self.cardinalities, self.projections, strict=True):
            state[f"keys_{size}"], state[f"values_{size}"] = project(frames)
        return state

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        with torch.autocast(labels.device.type, enabled=False):
            distances = [
                tuple_distances(
                    at_least_float32(query[f"keys_{size}"]),
                    at_least_float32(query[f"values_{size}"]),
                    at_least_float32(support[f"keys_{size}"]),
                    at_least_float32(support[f"values_{size}"]),
                    labels,
                )
                for size in self.cardinalities
            ]
        return EpisodeOutput(logits=-torch.stack(distances).mean(dim=0))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released code, such as ``transformers.0.k_linear.weight``.

        A head of one cardinality also accepts names without the prefix, such as ``k_linear.weight``.
        """
        prefixes = {f"transformers.{index}.": f"projections.{index}." for index in range(len(self.cardinalities))}
        if len(self.cardinalities) == 1:
            prefixes[""] = "projections.0."
        names = {
            f"{theirs}{name}": f"{ours}{our_name}"
            for theirs, ours in prefixes.items()
            for name, our_name in REFERENCE_NAMES.items()
        }
        ignored = [f"{theirs}{name}" for theirs in prefixes for name in REFERENCE_IGNORED]
        load_reference_state(self, state, names, ignored)


def tuple_distances(
    query_keys: Tensor, query_values: Tensor, support_keys: Tensor, support_values: Tensor, labels: Tensor
) -> Tensor:
    """Return each query's squared distance to the prototypes of each class, averaged over its tuples, ``(Q,n_way)``.

    Keys and values of queries are ``(Q,N,width)``, those of the support ``(S,N,width)``, and labels ``(S,)``.
    """
    prototypes = class_attention(query_keys, support_keys, support_values, labels)  # (n_way,Q,N,width)
    return (query_values - prototypes).square().sum(dim=-1).mean(dim=-1).T
