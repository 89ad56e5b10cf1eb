"""Classifier that is fine-tuned on the support of each task: Baseline and Baseline++ of Chen et al., ICLR 2019.

W.-Y. Chen et al., "A Closer Look at Few-shot Classification", ICLR 2019 (arXiv 1904.04232), train a linear or a cosine
classifier on the frozen features of the support, by a fixed number of gradient steps. Ours differs in two ways, which
make it deterministic without a seed. All support videos are in every step. The linear classifier starts at zero and the
cosine classifier at the class means, not at random weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .frame_distance import check_number, check_option, class_members
from .vectors import SMALLEST_NORM, Frames, VectorHead, with_constant

Classifier = Literal["linear", "cosine"]


class FineTuned(VectorHead):
    """Linear or cosine classifier after a fixed number of gradient steps on the support of a task.

    The weights of a class stay sums of support vectors, so only products of vectors are needed and tasks run in one
    batch. Gradients pass through all steps.

    Args:
        classifier: ``"linear"`` with a bias (Baseline), or ``"cosine"`` (Baseline++).
        steps: gradient steps, at least 1.
        rate: learning rate. That of the cosine classifier is divided by ``scale ** 2``, the curvature of its loss.
        momentum: of the gradient steps, at least 0 and less than 1.
        weight_decay: weight of half the squared norm of the weights.
        scale: factor of the cosine similarities.
        frames: see `VectorHead`.
    """

    def __init__(
        self,
        classifier: Classifier = "cosine",
        steps: int = 100,
        rate: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        scale: float = 10.0,
        frames: Frames = "mean",
    ) -> None:
        super().__init__(frames)
        check_option(self, "classifier", classifier, ("linear", "cosine"))
        check_number(self, "steps", steps, steps >= 1, "at least 1")
        check_number(self, "rate", rate, rate > 0, "more than 0")
        check_number(self, "momentum", momentum, 0 <= momentum < 1, "at least 0 and less than 1")
        check_number(self, "weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        check_number(self, "scale", scale, scale > 0, "more than 0")
        self.classifier, self.steps, self.rate = classifier, steps, rate
        self.momentum, self.weight_decay, self.scale = momentum, weight_decay, scale

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        members = class_members(labels, len(support)).to(support.dtype)
        if self.classifier == "linear":
            products, of_query = with_constant(support, query)
            return of_query @ self._descend(products, members, torch.zeros_like(members))
        products = support @ support.T
        weights = self._descend(products, members, members / members.sum(dim=0))
        return self.scale * query @ support.T @ weights / _norms(products, weights)

    def _descend(self, products: Tensor, members: Tensor, weights: Tensor) -> Tensor:
        """Return the coefficients ``(S,n_way)`` of the support vectors in the weights of each class after all steps.

        Args:
            products: of all pairs of support vectors, ``(S,S)``.
            members: one-hot classes, ``(S,n_way)``.
            weights: coefficients at the start.
        """
        rate = self.rate if self.classifier == "linear" else self.rate / self.scale**2
        velocity = torch.zeros_like(weights)
        for _ in range(self.steps):
            gradient = self._gradient(products, members, weights) + self.weight_decay * weights
            velocity = self.momentum * velocity + gradient
            weights = weights - rate * velocity
        return weights

    def _gradient(self, products: Tensor, members: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient of the mean cross-entropy by the weight vectors, as coefficients ``(S,n_way)``."""
        if self.classifier == "linear":
            return ((products @ weights).softmax(dim=-1) - members) / len(members)
        norms = _norms(products, weights)
        cosines = products @ weights / norms
        by_cosine = self.scale * ((self.scale * cosines).softmax(dim=-1) - members) / len(members)
        # The part along the weights only changes their norms, on which cosines do not depend.
        return (by_cosine - (by_cosine * cosines).sum(dim=0) * weights / norms) / norms


def _norms(products: Tensor, weights: Tensor) -> Tensor:
    """Return the norm of the weights of each class ``(n_way,)`` from their coefficients ``(S,n_way)``."""
    squares = (weights * (products @ weights)).sum(dim=0)
    return squares.clamp_min(SMALLEST_NORM**2).sqrt()
