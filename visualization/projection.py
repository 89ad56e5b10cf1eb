"""Projection of video states to a plane: principal components, or t-SNE if scikit-learn is installed."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from ..backbones.state import VideoState
from ..errors import DmgalError

LEAST_FOR_TSNE = 5


def state_vectors(state: VideoState) -> Tensor:
    """Return one vector per video, ``(V, D)``: all entries of its state, each scaled to the same mean length."""
    parts = [tensor.flatten(1).float() for tensor in state.values() if tensor.is_floating_point()]
    return torch.cat([part / part.norm(dim=1).mean().clamp_min(1e-12) for part in parts], dim=1)


def principal_plane(vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors ``(V, D)`` and others ``(W, D)`` in the principal plane of the former, ``(V, 2)``, ``(W, 2)``."""
    mean = vectors.mean(dim=0)
    basis = torch.linalg.svd(vectors - mean, full_matrices=False)[2][:2]
    if len(basis) < 2:  # a gallery of one clip
        basis = torch.cat([basis, torch.zeros(2 - len(basis), basis.shape[1])])
    signs = basis.sum(dim=1, keepdim=True).sign()  # the sign of a component is arbitrary, this one is reproducible
    basis = basis * torch.where(signs == 0, torch.ones_like(signs), signs)
    return (vectors - mean) @ basis.T, (others - mean) @ basis.T


def tsne_plane(vectors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(V, 2)`` and ``(W, 2)`` by t-SNE of all vectors together.

    Raises:
        DmgalError: scikit-learn is not installed, or there are fewer than five vectors.
    """
    both = torch.cat([vectors, others])
    is_missing = find_spec("sklearn") is None
    if is_missing or len(both) < LEAST_FOR_TSNE:
        raise DmgalError(
            "t-SNE cannot be used here.",
            received="no scikit-learn" if is_missing else f"{len(both)} clips",
            expected=f"scikit-learn and at least {LEAST_FOR_TSNE} clips",
            remedy="Use --method pca" + (", or run pip install scikit-learn." if is_missing else "."),
        )
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(both) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(both.numpy())
    points = torch.from_numpy(points)
    return points[: len(vectors)], points[len(vectors) :]
