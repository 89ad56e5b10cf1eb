"""Cross-attention of query tokens to the tokens of each class: the query-specific class prototypes of TRX."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from .frame_distance import class_members


def class_attention(query: Tensor, keys: Tensor, values: Tensor, labels: Tensor) -> Tensor:
    """Attend from query tokens to each class, with one softmax over the tokens of all its shots.

    The number of ways is free, and classes may have different numbers of shots. Scores are divided by ``sqrt(D)``.

    Args:
        query: ``(Q,N,D)``, tokens of the query videos.
        keys: ``(S,M,D)``, tokens of the support videos.
        values: ``(S,M,E)``.
        labels: ``(S,)``, classes from 0 without gaps.

    Returns:
        Prototype of each class for each query token, ``(n_way,Q,N,E)``.
    """
    shots, is_shot = shots_of_classes(labels, len(keys))
    class_keys, class_values = (rearrange(tokens[shots], "c k m d -> c (k m) d") for tokens in (keys, values))
    mask = None if is_shot.all() else is_shot.repeat_interleave(keys.shape[1], dim=1)[:, None]  # (n_way,1,K*M)
    query_tokens = query.flatten(0, 1).expand(len(shots), -1, -1)  # (n_way,Q*N,D)
    prototypes = functional.scaled_dot_product_attention(query_tokens, class_keys, class_values, attn_mask=mask)
    return prototypes.unflatten(1, query.shape[:2])


def shots_of_classes(labels: Tensor, num_support: int) -> tuple[Tensor, Tensor]:
    """Return the support videos of each class, padded to the largest number of shots K.

    Args:
        labels: ``(S,)``, classes from 0 without gaps.
        num_support: ``S``, to validate the labels.

    Returns:
        Indices of support videos ``(n_way,K)``, and a mask ``(n_way,K)`` that is False for padding.
    """
    counts = class_members(labels, num_support).sum(dim=0)  # (n_way,)
    shot = torch.arange(int(counts.max()), device=labels.device)  # (K,)
    is_shot = shot < counts[:, None]
    first = (counts.cumsum(dim=0) - counts)[:, None]
    return labels.argsort(stable=True)[first + shot * is_shot], is_shot
