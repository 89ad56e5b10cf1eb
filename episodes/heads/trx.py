"""TRX (CVPR 2021): tuples of a query's frames against the same tuples of a class, as attention over all its shots.

For each tuple of the query a prototype of the class is the attention-weighted sum of the values of the class's tuples;
the distance is the mean over tuples of the squared distance between the tuple's value and its prototype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...adapters.position_code import sinusoidal_position_code
from ...adapters.reference_state import load_reference_state
from ...adapters.shared_dropout import SharedDropout
from ...backbones.video_state import VideoState
from ..episode import EpisodeOutput
from .class_attention import class_attention
from .frame_distance import at_least_float32, check_frames
from .tuples import TupleLinear

_REFERENCE_NAMES = {"k_linear": "keys", "v_linear": "values", "norm_k": "key_norm"}
REFERENCE_IGNORED = ("pe.pe", "norm_v.weight", "norm_v.bias", "v_linear.bias")
"""Nothing that is learned: values are not normalized, and their bias cancels."""


class TupleProjection(nn.Module):
    """Keys and values of all tuples of one cardinality; only keys are normalized.

    Values have no bias: it would cancel in ``v - sum(a v')``, as each row of the attention ``a`` sums to 1.

    Args:
        channels: width ``D`` of the frame features.
        cardinality: frames of a tuple.
        width: of keys and values.
    """

    def __init__(self, channels: int, cardinality: int, width: int) -> None:
        super().__init__()
        self.keys = TupleLinear(channels, width, cardinality)
        self.values = TupleLinear(channels, width, cardinality, bias=False)
        self.key_norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """``(V,T,D)`` to keys and values ``(V,N,width)``."""
        return self.key_norm(self.keys(frames)), self.values(frames)


class TRX(nn.Module):
    """Logits are the mean over cardinalities of the negative distances.

    The position code is added once for all cardinalities; the released code does so, with the same code, in each.

    Args:
        channels: width ``D`` of the frame features.
        cardinalities: frames of the tuples; the paper's are pairs and triples.
        width: of keys and values.
        dropout: of the position-coded frames.
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
        """From ``(V,T,D)``, for each cardinality c: ``keys_c`` and ``values_c`` ``(V,N,width)``, N = T choose c."""
        check_frames(self, features)
        code = sinusoidal_position_code(*features.shape[1:], like=features)
        frames = self.dropout(features + code)
        state = VideoState()
        for size, project in zip(self.cardinalities, self.projections, strict=True):
            state[f"keys_{size}"], state[f"values_{size}"] = project(frames)
        return state

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Logits ``(Q,n_way)`` from `prepare` of ``S`` and ``Q`` videos and the support's labels ``(S,)``."""
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
        """Load weights under the names of the released code, ``transformers.0.k_linear.weight`` and so on.

        A head of one cardinality also takes the names of that transformer alone, ``k_linear.weight`` and so on.
        """
        prefixes = {f"transformers.{place}.": f"projections.{place}." for place in range(len(self.cardinalities))}
        if len(self.cardinalities) == 1:
            prefixes[""] = "projections.0."
        names = {
            f"{theirs}{name}": f"{ours}{our_name}"
            for theirs, ours in prefixes.items()
            for name, our_name in _REFERENCE_NAMES.items()
        }
        ignored = [f"{theirs}{name}" for theirs in prefixes for name in REFERENCE_IGNORED]
        load_reference_state(self, state, names, ignored)


def tuple_distances(
    query_keys: Tensor, query_values: Tensor, support_keys: Tensor, support_values: Tensor, labels: Tensor
) -> Tensor:
    """Distance of each query to each class: the mean over its tuples of the squared distance to their prototypes.

    Args:
        query_keys, query_values: ``(Q,N,width)``.
        support_keys, support_values: ``(S,N,width)``.
        labels: ``(S,)``.

    Returns:
        ``(Q,n_way)``.
    """
    prototypes = class_attention(query_keys, support_keys, support_values, labels)  # (n_way,Q,N,width)
    return (query_values - prototypes).square().sum(dim=-1).mean(dim=-1).T
