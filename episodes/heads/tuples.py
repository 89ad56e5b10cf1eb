"""Ordered tuples of a video's frames, the tokens of TRX (CVPR 2021) and its successors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import DmgalError


def frame_tuples(num_frames: int, cardinality: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the indices ``(N,cardinality)`` of all ordered frame tuples, N = T choose cardinality.

    Raises:
        DmgalError: cardinality is below 1 or above the number of frames.
    """
    if not 1 <= cardinality <= num_frames:
        raise DmgalError(
            "Cannot form tuples from a video's frames.",
            received=f"{num_frames} frames for tuples of {cardinality}",
            expected="a tuple size from 1 to the number of frames",
            remedy="Sample more frames per video, or remove the largest cardinality.",
        )
    return torch.combinations(torch.arange(num_frames, device=device), cardinality)


class TupleLinear(nn.Linear):
    """Linear layer on the concatenated frames of each tuple, computed without building the tuples.

    The layer is a sum over a tuple's positions, so each frame is multiplied once per position and the products are
    added. For 8 frames this is 3.5 times less work on pairs and 7 times less on triples. Parameters are those of
    ``Linear(cardinality * channels, out_features)``.
    """

    def __init__(self, channels: int, out_features: int, cardinality: int, bias: bool = True) -> None:
        super().__init__(cardinality * channels, out_features, bias=bias)
        self.cardinality = cardinality

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``(V,T,C)`` to ``(V,N,out_features)``, with tuples in the order of `frame_tuples`."""
        tuples = frame_tuples(frames.shape[1], self.cardinality, frames.device)
        position_weights = self.weight.unflatten(1, (self.cardinality, -1)).unbind(
            dim=1
        )  # cardinality times (out_features,C)
        products = [nn.functional.linear(frames, weight) for weight in position_weights]  # (V,T,out_features) each
        terms = [
            product[:, frame_indices] for product, frame_indices in zip(products, tuples.T, strict=True)
        ]  # (V,N,out_features)
        summed = torch.stack(terms).sum(dim=0)
        return summed if self.bias is None else summed + self.bias
