"""M2ACL (ICASSP 2024): motion-enhanced maps, TRX on pairs and triples of frames, and a contrast of tuple distances.

The contrast compares the LARGEST distance of a query's tuples to those of a class, ``d_max``, with their distance to
tuples that are unrelated to the class. The released code trains it to be large for the right class and adds ``d_max``
to the logits. We reproduce that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import SharedDropout, load_reference_state
from ...adapters.mga import REFERENCE_NAMES as MOTION_NAMES
from ...adapters.mga import TDSAM
from ...backbones.state import VideoState
from ..episode import EpisodeOutput, TaskTargets
from .frame_distance import at_least_float32, class_members
from .trx import REFERENCE_IGNORED, REFERENCE_NAMES, TRX
from .tuples import TupleLinear, shots_of_classes


class TupleEmbedding(nn.Module):
    """Embedding ``relu(linear(tuple))`` of all tuples of a video, after dropout of its frames.

    Args:
        channels: width ``C`` of the frame features.
        cardinality: number of frames per tuple.
        width: width ``E`` of an embedded tuple; ``C // 2`` if None.
        dropout: probability of dropout of frame features in training; all videos of a batch share its mask (ours).
    """

    def __init__(self, channels: int, cardinality: int, width: int | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = SharedDropout(dropout, video_dim=0)
        self.linear = TupleLinear(channels, channels // 2 if width is None else width, cardinality)

    def forward(self, frames: Tensor) -> Tensor:
        """Embed all tuples of ``(V,T,C)``, to ``(V,N,E)``."""
        return self.linear(self.dropout(frames)).relu()

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the released name, ``clsW``."""
        load_reference_state(self, state, {"clsW": "linear"})


class M2ACL(nn.Module):
    """Head with logits ``TRX + tuple_weight * d_max``, trained on the cross-entropies of TRX and the contrast.

    The released code stores the tuple embeddings in a plain list, so they are neither trained nor saved, and supports 5
    ways only. Here they are parameters, and the number of ways is free. Distances of pairs and triples are averaged,
    like the logits of TRX.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: TDSAM's motion has ``C // reduction`` channels.
        cardinalities: numbers of frames per tuple.
        width: width of TRX's keys and values.
        tuple_weight: weight of ``d_max`` in the prediction.
        dropout: probability of dropout of frame features before tuples, in training.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"contrast": 0.05}
    pair_scores = "one_shot"

    def __init__(
        self,
        channels: int,
        reduction: int = 2,
        cardinalities: Sequence[int] = (2, 3),
        width: int = 1152,
        tuple_weight: float = 0.05,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tuple_weight = tuple_weight
        self.motion_attention = TDSAM(channels, reduction)
        self.matcher = TRX(channels, cardinalities, width, dropout)
        self.embeddings = nn.ModuleList(TupleEmbedding(channels, size, dropout=dropout) for size in cardinalities)

    def prepare(self, features: Tensor) -> VideoState:
        """Return TRX's state and ``tuples_c`` ``(V,N,C//2)`` per cardinality c, from patch maps ``(V,T,C,H,W)``."""
        frames = self.motion_attention(features).mean(dim=(-2, -1))  # (V,T,C)
        state = self.matcher.prepare(frames)
        for size, embedding in zip(self.matcher.cardinalities, self.embeddings, strict=True):
            state[f"tuples_{size}"] = embedding(frames)
        return state

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` and, given targets, the losses ``cross_entropy`` (of TRX) and ``contrast``."""
        cross_attention = self.matcher.compare(support, labels, query).logits
        names = [f"tuples_{size}" for size in self.matcher.cardinalities]
        # Distances are small differences of large numbers, so autocast must stay off here.
        with torch.autocast(labels.device.type, enabled=False):
            tuples = [(at_least_float32(query[name]), at_least_float32(support[name])) for name in names]
            distances = [tuple_distances(*pair) for pair in tuples]
            largest = torch.stack([largest_distances(part, labels)[0].mean(dim=1) for part in distances]).mean(dim=0)
            logits = cross_attention + self.tuple_weight * largest
            if targets is None:
                return EpisodeOutput(logits)
            contrasts = [
                tuple_contrast(part, tuple_distances(own.detach(), own.detach()), labels)
                for part, (_, own) in zip(distances, tuples, strict=True)
            ]
            parts = {"cross_entropy": cross_attention, "contrast": torch.stack(contrasts).mean(dim=0)}
            losses = {name: functional.cross_entropy(part, targets.query_labels) for name, part in parts.items()}
        return EpisodeOutput(logits, losses)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load released weights: ``tdsam.``, ``transformers.0.`` and on, ``tuple_classifiers.0.clsW`` and on.

        The authors' names follow these prefixes. Checkpoints name these parts differently for each backbone, so rename
        them first. Released checkpoints lack the tuple classifiers, which then keep their weights.
        """
        names = {f"tdsam.{theirs}": f"motion_attention.motion.{ours}" for theirs, ours in MOTION_NAMES.items()}
        names |= {"tdsam.conv": "motion_attention.values", "tdsam.gamma": "motion_attention.gamma"}
        ignored, current_embeddings = [], {}
        for index, embedding in enumerate(self.embeddings):
            theirs, ours = f"transformers.{index}", f"matcher.projections.{index}"
            names |= {f"{theirs}.{name}": f"{ours}.{our_name}" for name, our_name in REFERENCE_NAMES.items()}
            ignored += [f"{theirs}.{name}" for name in REFERENCE_IGNORED]
            names[f"tuple_classifiers.{index}.clsW"] = f"embeddings.{index}.linear"
            for name, tensor in embedding.state_dict().items():
                current_embeddings[f"tuple_classifiers.{index}.clsW.{name.removeprefix('linear.')}"] = tensor
        load_reference_state(self, {**current_embeddings, **state}, names, ignored)


def tuple_distances(query: Tensor, support: Tensor) -> Tensor:
    """Return Euclidean distances ``(Q,N,S,M)`` of all tuples of all pairs of videos ``(Q,N,E)`` and ``(S,M,E)``."""
    distances = torch.cdist(query.flatten(0, 1), support.flatten(0, 1))  # (Q*N,S*M)
    return distances.view(*query.shape[:2], *support.shape[:2])


def largest_distances(distances: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each query tuple to each class's farthest tuple, and that tuple's index.

    Distances ``(Q,N,S,M)`` and labels ``(S,)``, which count from 0 without gaps, give distances ``(Q,N,n_way)`` and
    indices among the ``S*M`` support tuples ``(Q,N,n_way)``.
    """
    shots, _, class_distances = _group_by_class(distances, labels)
    largest, index = class_distances.flatten(3).max(dim=-1)  # (Q,N,n_way), index among K*M
    num_tuples = distances.shape[-1]
    video = shots[torch.arange(len(shots), device=labels.device), index // num_tuples]
    return largest, video * num_tuples + index % num_tuples


def tuple_contrast(distances: Tensor, support_distances: Tensor, labels: Tensor) -> Tensor:
    """Return ``d_max / (d_max + d_neg)`` of each query and class c, ``(Q,n_way)``.

    ``d_max`` is the mean over the query's tuples of the largest distance to a tuple of c. ``d_neg`` is the mean
    distance to the tuples unrelated to c (see `unrelated_tuples`), divided by ``n_way - 1``. If no tuple is unrelated,
    the result is 1, or 0 if ``d_max`` is 0 as well.

    Distances of query and support tuples are ``(Q,N,S,M)``, those among support tuples ``(S,M,S,M)``. The labels
    ``(S,)`` count from 0 without gaps.
    """
    largest = largest_distances(distances, labels)[0].mean(dim=1)  # (Q,n_way)
    unrelated = unrelated_tuples(distances, support_distances, labels).to(distances.dtype).flatten(1)  # (n_way,S*M)
    to_unrelated = distances.mean(dim=1).flatten(1) @ unrelated.T / unrelated.sum(dim=1).clamp(min=1)
    total = largest + to_unrelated / max(len(unrelated) - 1, 1)
    return largest / total.masked_fill(total == 0, 1)


@torch.no_grad()
def unrelated_tuples(distances: Tensor, support_distances: Tensor, labels: Tensor) -> Tensor:
    """Return a mask ``(n_way,S,M)`` of the support tuples that are unrelated to each class c.

    For each query tuple of the task, take c's farthest tuple. Count the tuples of other classes that are farther from
    it than the query tuple's threshold (see `_thresholds`). A tuple of class k is unrelated if its count is below the
    mean count of k's tuples, taken over those with a nonzero count. The class's own tuples are never unrelated.

    Arguments and shapes are those of `tuple_contrast`.
    """
    farthest = largest_distances(distances, labels)[1].flatten(0, 1)  # (Q*N,n_way)
    from_farthest = rearrange(support_distances, "s m t n -> (s m) (t n)")[farthest]  # (Q*N,n_way,S*M)
    is_far = from_farthest > _thresholds(distances, labels)[..., None]
    counts = is_far.sum(dim=0, dtype=torch.float32).unflatten(1, distances.shape[2:])  # (n_way,S,M)
    members = class_members(labels, len(labels)).to(counts.dtype)  # (S,n_way)
    sums, counted = counts.sum(dim=2) @ members, (counts > 0).sum(dim=2).to(counts.dtype) @ members  # (n_way,n_way)
    means = (sums / counted.clamp(min=1))[:, labels]  # (n_way,S)
    return (counts < means[..., None]) & (members.T == 0)[..., None]


def _thresholds(distances: Tensor, labels: Tensor) -> Tensor:
    """Return a query tuple's mean over K groups of a class's tuples of the largest distance, ``(Q*N,n_way)``.

    K is the class's number of shots, and the groups were meant to be its shots. The released code instead writes the
    ``K*M`` distances, shot after shot, into a matrix of M rows and K columns and takes the maximum of each column. A
    group then has every K-th tuple of all shots, so the contrast depends on the order of several shots.
    """
    _, is_shot, class_distances = _group_by_class(distances, labels)
    num_shots = is_shot.sum(dim=1)[:, None, None]  # (n_way,1,1)
    group = torch.arange(is_shot.shape[1], device=labels.device)[:, None]  # (K,1)
    row = torch.arange(distances.shape[-1], device=labels.device)  # (M,)
    is_group = group < num_shots  # (n_way,K,1)
    indices = (row * num_shots + group).where(is_group, 0)  # (n_way,K,M)
    in_groups = class_distances.flatten(3).gather(-1, indices.flatten(1).expand(*distances.shape[:2], -1, -1))
    largest = in_groups.unflatten(-1, indices.shape[1:]).amax(dim=-1).where(is_group.squeeze(-1), 0)  # (Q,N,n_way,K)
    return (largest.sum(dim=-1) / is_shot.sum(dim=1)).flatten(0, 1)


def _group_by_class(distances: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `shots_of_classes` and the distances grouped likewise, ``(Q,N,n_way,K,M)``, with -inf as padding."""
    shots, is_shot = shots_of_classes(labels, distances.shape[2])  # (n_way,K)
    return shots, is_shot, distances[:, :, shots].masked_fill(~is_shot[..., None], -torch.inf)
