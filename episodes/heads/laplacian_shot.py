"""LaplacianShot (Ziko et al., ICML 2020): nearest prototypes, and similar queries get similar labels.

The labels ``y`` of the queries minimize ``sum_q y_q a_q + strength / 2 sum_qp w(q, p) |y_q - y_p|²``. Here ``a_q`` are
the squared distances to the prototypes, and ``w(q, p)`` is 1 if ``p`` is one of the nearest other queries of ``q``. The
bound updates ``y_q = softmax(-a_q + strength * sum_p w(q, p) y_p)`` of the paper never increase the objective. As in
the released code there are 20 of them, and each query has two neighbors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .frame_distance import check_number, class_means
from .vectors import Frames, VectorHead


class LaplacianShot(VectorHead):
    """Head that labels all queries of a task together, see the module. The logits are those of the last update.

    Args:
        strength: weight of the agreement between neighbors. The paper chooses it on validation classes, 0.1 to 1.5.
        neighbors: number of nearest other queries of each query.
        iterations: number of bound updates.
        frames: see `VectorHead`.
    """

    transductive = True

    def __init__(
        self, strength: float = 1.0, neighbors: int = 2, iterations: int = 20, frames: Frames = "mean"
    ) -> None:
        super().__init__(frames)
        check_number(self, "strength", strength, strength >= 0, "at least 0")
        check_number(self, "neighbors", neighbors, neighbors >= 1, "at least 1")
        check_number(self, "iterations", iterations, iterations >= 1, "at least 1")
        self.strength, self.neighbors, self.iterations = strength, neighbors, iterations

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        unary = (query[:, None] - class_means(support, labels)).square().sum(dim=-1)  # (Q,n_way)
        affinity = self.affinity(query.detach())
        logits = -unary
        for _ in range(self.iterations):
            logits = self.strength * affinity @ logits.softmax(dim=-1) - unary
        return logits

    def affinity(self, query: Tensor) -> Tensor:
        """Return ``(Q,Q)`` with a 1 for each of the nearest other queries of a query."""
        number = min(self.neighbors, len(query) - 1)
        distances = (query[:, None] - query).square().sum(dim=-1)
        itself = torch.eye(len(query), dtype=torch.bool, device=query.device)
        nearest = distances.masked_fill(itself, torch.inf).topk(number, dim=-1, largest=False).indices  # (Q,number)
        others = torch.arange(len(query), device=query.device)
        return (nearest[:, :, None] == others).sum(dim=1).to(query.dtype)
