"""TIM, Transductive Information Maximization (Boudiaf et al., NeurIPS 2020), by alternating updates (TIM-ADM).

The classifier has one weight vector per class, at first the mean of its shots. It maximizes the mutual information
between the queries and their labels, while the support keeps its labels:

    cross_entropy * CE(support) - H(labels of the queries) + conditional * H(label of a query)

Auxiliary labels ``q`` of the queries make both steps of an iteration closed-form (equations 6 and 7 of the paper). The
constants are those of the authors' released code: temperature 15, 150 iterations, weights 0.1, 1 and 0.1.

The entropy of all labels favors equal numbers of queries per class. Tasks with the same number of queries per class,
which are the default of all commands here, therefore help this head.
"""

from __future__ import annotations

from torch import Tensor

from .frame_distance import check_number, class_means, class_members
from .vectors import Frames, VectorHead


class TIM(VectorHead):
    """Head that fits one classifier to the support and to all queries of a task, see the module.

    Args:
        temperature: factor of the logits.
        iterations: number of alternating updates.
        cross_entropy: weight of the labels of the support.
        conditional: weight of the entropy of each query's label.
        frames: see `VectorHead`.
    """

    transductive = True

    def __init__(
        self,
        temperature: float = 15.0,
        iterations: int = 150,
        cross_entropy: float = 0.1,
        conditional: float = 0.1,
        frames: Frames = "mean",
    ) -> None:
        super().__init__(frames)
        check_number(self, "temperature", temperature, temperature > 0, "more than 0")
        check_number(self, "iterations", iterations, iterations >= 0, "at least 0")
        check_number(self, "cross_entropy", cross_entropy, cross_entropy > 0, "more than 0")
        check_number(self, "conditional", conditional, conditional >= 0, "at least 0")
        self.temperature, self.iterations = temperature, iterations
        self.cross_entropy, self.conditional = cross_entropy, conditional

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        members = class_members(labels, len(support)).to(support.dtype)
        weights = class_means(support, labels)
        for _ in range(self.iterations):
            targets = self.query_labels(self.logits(query, weights).softmax(dim=-1))
            weights = self.update(weights, support, members, query, targets)
        return self.logits(query, weights)

    def logits(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return ``-temperature / 2 * |vector - weight|²``, ``(V,n_way)``."""
        squared = vectors.square().sum(dim=-1)[:, None] + weights.square().sum(dim=-1) - 2 * vectors @ weights.T
        return -self.temperature / 2 * squared

    def query_labels(self, probabilities: Tensor) -> Tensor:
        """Return the auxiliary labels ``q`` ``(Q,n_way)`` from the classifier's probabilities."""
        sharpened = probabilities ** (1 + self.conditional)
        balanced = sharpened / sharpened.sum(dim=0, keepdim=True).sqrt()
        return balanced / balanced.sum(dim=-1, keepdim=True)

    def update(self, weights: Tensor, support: Tensor, members: Tensor, query: Tensor, targets: Tensor) -> Tensor:
        """Return the weights ``(n_way,D)`` that maximize the bound, given the labels of support and queries."""
        parts = (
            (self.cross_entropy / (1 + self.conditional), support, members),
            (len(support) / len(query), query, targets),
        )
        total, norm = 0.0 * weights, 0.0 * weights[:, :1]
        for factor, vectors, labels in parts:
            probabilities = self.logits(vectors, weights).softmax(dim=-1)
            residual = (labels - probabilities).T @ vectors + probabilities.sum(dim=0)[:, None] * weights
            total, norm = total + factor * residual, norm + factor * labels.sum(dim=0)[:, None]
        return total / norm
