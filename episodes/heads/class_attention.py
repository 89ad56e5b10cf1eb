"""Cross attention of query tokens over the tokens of one class at a time: TRX's query-specific class prototypes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .frame_distance import class_members


def class_attention(query: Tensor, keys: Tensor, values: Tensor, labels: Tensor) -> Tensor:
    """For each class one softmax over all tokens of all its shots; any ways, and unequal shots.

    Args:
        query: ``(Q,N,D)``, tokens of the query videos.
        keys: ``(S,M,D)``, tokens of the support videos.
        values: ``(S,M,E)``.
        labels: ``(S,)``, classes from 0 without gaps.

    Returns:
        ``(n_way,Q,N,E)``: each class as each query token sees it. Scores are divided by ``sqrt(D)``.
    """
    shots, is_shot = shots_of_classes(labels, len(keys))
    class_keys, class_values = keys[shots].flatten(1, 2), values[shots].flatten(1, 2)  # (n_way,K*M,D), (n_way,K*M,E)
    mask = None if is_shot.all() else is_shot.repeat_interleave(keys.shape[1], dim=1)[:, None]  # (n_way,1,K*M)
    tokens = query.flatten(0, 1).expand(len(shots), -1, -1)  # (n_way,Q*N,D)
    seen = functional.scaled_dot_product_attention(tokens, class_keys, class_values, attn_mask=mask)
    return seen.unflatten(1, query.shape[:2])


def shots_of_classes(labels: Tensor, num_support: int) -> tuple[Tensor, Tensor]:
    """The support videos of each class, padded to the largest number of shots K.

    Args:
        labels: ``(S,)``, classes from 0 without gaps.
        num_support: ``S``, to check the labels by.

    Returns:
        Places in the support ``(n_way,K)``, and which of them are no padding, ``(n_way,K)``.
    """
    counts = class_members(labels, num_support).sum(dim=0)  # (n_way,)
    shot = torch.arange(int(counts.max()), device=labels.device)  # (K,)
    is_shot = shot < counts[:, None]
    first = (counts.cumsum(dim=0) - counts)[:, None]
    return labels.argsort(stable=True)[first + shot * is_shot], is_shot
