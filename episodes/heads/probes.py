"""Linear probes: a classifier of the query's vector, fitted to the support videos of each task."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .frame_distance import check_number, class_members
from .vectors import Frames, VectorHead, with_constant

STEPS_PER_ROOT = 20
"""Gradient steps of the logistic probe per square root of the condition number. The error shrinks to about exp(-20)."""


class RidgeProbe(VectorHead):
    """Ridge regression onto the one-hot classes of the support, in closed form (R2-D2, Bertinetto et al., ICLR 2019).

    Args:
        strength: weight of the squared norm of the solution.
        scale: factor of the logits, for training an adapter through the solution.
        frames: see `VectorHead`.
    """

    def __init__(self, strength: float = 1.0, scale: float = 10.0, frames: Frames = "mean") -> None:
        super().__init__(frames)
        check_number(self, "strength", strength, strength > 0, "more than 0")
        check_number(self, "scale", scale, scale > 0, "more than 0")
        self.strength, self.scale = strength, scale

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        members = class_members(labels, len(support)).to(support.dtype)
        products, of_query = with_constant(support, query)
        identity = torch.eye(len(support), dtype=products.dtype, device=products.device)
        return self.scale * of_query @ torch.linalg.solve(products + self.strength * identity, members)


class LogisticProbe(VectorHead):
    """Multinomial logistic regression on the support, as scikit-learn's ``LogisticRegression(C=1/strength)``.

    The bias is the weight of a constant feature and penalized like the others. The objective is strongly convex, and
    Nesterov's accelerated gradient reaches its only minimum. The weights are sums of support vectors, so only products
    of vectors are needed. Gradients pass through all steps.

    Args:
        strength: weight of half the squared norm of the weights, ``1/C``. At least 0.01, for the number of steps.
        frames: see `VectorHead`.
    """

    def __init__(self, strength: float = 1.0, frames: Frames = "mean") -> None:
        super().__init__(frames)
        check_number(self, "strength", strength, strength >= 0.01, "at least 0.01")
        self.strength = strength

    def classify(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        members = class_members(labels, len(support)).to(support.dtype)
        products, of_query = with_constant(support, query)
        return of_query @ self.coefficients(products, members)

    def coefficients(self, products: Tensor, members: Tensor) -> Tensor:
        """Return the coefficients ``(S,n_way)`` of the support vectors in the weights of each class.

        Args:
            products: of all pairs of support vectors, ``(S,S)``.
            members: one-hot classes, ``(S,n_way)``.
        """
        # The Hessian of the cross-entropy is at most half the largest eigenvalue of the products.
        curvature = self.strength + products.detach().abs().sum(dim=-1).amax() / 2
        momentum = 1 - 2 / ((curvature / self.strength).sqrt() + 1)
        now = before = torch.zeros_like(members)
        for _ in range(self.steps(len(members))):
            ahead = now + momentum * (now - before)
            gradient = (products @ ahead).softmax(dim=-1) - members + self.strength * ahead
            now, before = ahead - gradient / curvature, now
        return now

    def steps(self, num_support: int) -> int:
        """Return the number of steps for a number of support videos: more for a worse condition."""
        condition = 1 + num_support / self.strength
        return math.ceil(STEPS_PER_ROOT * math.sqrt(condition))
