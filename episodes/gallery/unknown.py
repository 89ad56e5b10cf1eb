"""Scores of a clip that are low if its action is unknown, and measures of such scores and of probabilities.

The functions are pure and know no recognizer. ``bench/unknown.py`` compares the scores on validation classes.

Sources: largest logit (Hendrycks et al., ICML 2022), energy (Liu et al., NeurIPS 2020), nearest neighbors (Sun et al.,
ICML 2022), Mahalanobis distance (Lee et al., NeurIPS 2018), temperature and expected calibration error (Guo et al.,
ICML 2017). Z-norm and T-norm are those of speaker verification (Auckenthaler et al., Digital Signal Processing 2000).
So is the idea to describe a sample by its scores against others (Sturim et al., ICASSP 2001).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURES = tuple(2 ** (step / 8) for step in range(-32, 49))
"""Candidates of `find_temperature`: 1/16 to 64."""
SHRINKAGE = 5
"""Number of clips at which the offset of a class is half of its difference to all classes."""
BINS = 10
"""Bins of the expected calibration error, of equal width."""


def largest_logit(logits: Tensor) -> Tensor:
    """Return the largest logit ``(Q,)`` of each clip from logits ``(Q, n_way)``."""
    return logits.max(dim=1).values


def class_offsets(own: Tensor, labels: Tensor) -> Tensor:
    """Return how much larger the logit of a known clip usually is in each class than in all, ``(n_way,)``.

    Differences to the mean of the classes are shrunk by ``n / (n + SHRINKAGE)`` for a class of ``n`` clips.

    Args:
        own: logit ``(S,)`` of each clip for its class, without the clip itself. ``nan``: does not count.
        labels: classes of the clips, ``(S,)`` int64 in ``0..n_way-1``.
    """
    counts = torch.zeros(int(labels.max()) + 1, dtype=own.dtype).index_add_(0, labels, own.isfinite().to(own.dtype))
    means = torch.zeros_like(counts).index_add_(0, labels, own.nan_to_num()) / counts.clamp_min(1)
    common = means.sum() / (counts > 0).sum().clamp_min(1)
    return counts / (counts + SHRINKAGE) * (means - common)


def class_adjusted(logits: Tensor, offsets: Tensor) -> Tensor:
    """Return the largest logit minus the offset of its class ``(Q,)``, from ``(Q, n_way)`` and ``(n_way,)``."""
    best = logits.max(dim=1)
    return best.values - offsets[best.indices]


def energy(logits: Tensor) -> Tensor:
    """Return the negative free energy ``log sum exp`` ``(Q,)`` of logits ``(Q, n_way)``."""
    return logits.logsumexp(dim=1)


def margin(logits: Tensor) -> Tensor:
    """Return the largest logit minus the second largest ``(Q,)``, from logits ``(Q, n_way)`` of two or more classes."""
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def probability(logits: Tensor) -> Tensor:
    """Return the largest probability ``(Q,)`` of the softmax of logits ``(Q, n_way)``."""
    return logits.softmax(dim=1).max(dim=1).values


def nearest_clips(logits: Tensor, count: int) -> Tensor:
    """Return the mean of the ``count`` largest scores ``(Q,)`` from the scores ``(Q, S)`` of single support clips."""
    return logits.topk(min(count, logits.shape[1]), dim=1).values.mean(dim=1)


def mahalanobis(query: Tensor, support: Tensor, labels: Tensor, shrinkage: float) -> Tensor:
    """Return the negative squared distance ``(Q,)`` to the nearest class mean, in units of the spread within classes.

    Args:
        query: features ``(Q, D)``.
        support: features ``(S, D)``.
        labels: classes of the support, ``(S,)`` int64 in ``0..n_way-1``.
        shrinkage: the covariance within classes becomes ``(1 - shrinkage) * covariance + shrinkage * v * identity``,
            where ``v`` is its mean variance. 1: the Euclidean distance, up to a factor. Above 0, because a few clips
            leave the covariance singular.
    """
    query, support = query.double(), support.double()
    means = torch.stack([support[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)])
    residuals = support - means[labels]
    spread = torch.linalg.svd(residuals / math.sqrt(max(len(support) - len(means), 1)), full_matrices=False)
    outside = shrinkage * spread.S.square().sum() / support.shape[1] + torch.finfo(torch.double).tiny
    inside = (1 - shrinkage) * spread.S.square() + outside  # variances along the directions of the residuals
    rescaled = (outside / inside).sqrt() - 1
    whitened = [(part + (part @ spread.Vh.T * rescaled) @ spread.Vh) / outside.sqrt() for part in (query, means)]
    return -torch.cdist(whitened[0], whitened[1]).square().min(dim=1).values


def agreement(visual: Tensor, text: Tensor) -> Tensor:
    """Return how much two kinds of logits ``(Q, n_way)`` agree on the class, ``(Q,)``: the log of the largest product
    of their probabilities."""
    return (visual.log_softmax(dim=1) + text.log_softmax(dim=1)).max(dim=1).values


def known_over_others(known: Tensor, negative: Tensor, floor: float) -> Tensor:
    """Return the log odds ``(Q,)`` of all known classes against an extra class "other".

    The extra class has the logits of negative classes and a constant one. With few or distant negatives the constant
    decides, and the score orders clips like `energy`.

    Args:
        known: logits ``(Q, n_way)`` of the known classes.
        negative: logits ``(Q, M)`` of the negative classes in the same task.
        floor: the constant logit. ``-inf``: negatives alone.
    """
    others = torch.cat([negative, negative.new_full((len(negative), 1), floor)], dim=1)
    return known.logsumexp(dim=1) - others.logsumexp(dim=1)


def z_norm(logits: Tensor, cohort: Tensor) -> Tensor:
    """Return the largest logit ``(Q,)`` in units of the spread of a cohort, class by class.

    Args:
        logits: ``(Q, n_way)``.
        cohort: logits ``(N, n_way)`` of clips of other actions.
    """
    return ((logits - cohort.mean(dim=0)) / cohort.std(dim=0)).max(dim=1).values


def t_norm(known: Tensor, negative: Tensor) -> Tensor:
    """Return the largest logit ``(Q,)`` in units of the spread of each clip's logits against negative classes.

    Args:
        known: logits ``(Q, n_way)`` of the known classes.
        negative: logits ``(Q, M)`` of the negative classes in the same task.
    """
    return (known.max(dim=1).values - negative.mean(dim=1)) / negative.std(dim=1)


def profile(query: Tensor, support: Tensor, labels: Tensor) -> Tensor:
    """Return how much the scores of a clip against negative classes resemble those of a known class, ``(Q,)``.

    The score is the negative mean squared difference to the nearest class mean. Each negative class has the variance
    within known classes as its unit, shrunk by half to the mean variance.

    Args:
        query: logits ``(Q, M)`` of clips against the negative classes.
        support: those of the enrolled clips, ``(S, M)``.
        labels: classes of the support, ``(S,)`` int64 in ``0..n_way-1``.
    """
    means = torch.stack([support[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)])
    variance = (support - means[labels]).square().sum(dim=0) / max(len(support) - len(means), 1)
    units = ((variance + variance.mean()) / 2).clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    return -torch.cdist(query / units, means / units).square().min(dim=1).values / query.shape[1]


def area_under_roc(known: Tensor, unknown: Tensor) -> float:
    """Return the probability that a known clip ``(K,)`` has a higher score than an unknown one ``(U,)``."""
    ordered = unknown.double().sort().values
    below = torch.searchsorted(ordered, known.double(), side="left")
    not_above = torch.searchsorted(ordered, known.double(), side="right")
    return ((below + not_above).double().mean() / 2 / len(ordered)).item()


def accepted_unknown(known: Tensor, unknown: Tensor, kept: float) -> float:
    """Return the share of unknown clips ``(U,)`` above the threshold that keeps a share of known clips ``(K,)``."""
    return (unknown.double() >= known.double().quantile(1 - kept)).double().mean().item()


def find_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the most probable temperature of ``softmax(logits / temperature)`` for the labels of held-out clips.

    Its logarithm has a standard normal prior, so that a few clips without an error do not give certainty.

    Args:
        logits: ``(Q, n_way)``, finite.
        labels: classes of the clips, ``(Q,)`` int64.
    """
    losses = [
        functional.cross_entropy(logits.double() / temperature, labels, reduction="sum").item()
        + math.log(temperature) ** 2 / 2
        for temperature in TEMPERATURES
    ]
    return TEMPERATURES[losses.index(min(losses))]


def calibration_error(probabilities: Tensor, right: Tensor) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy over bins, weighted by clips.

    Args:
        probabilities: of the best class of each clip, ``(Q,)`` in 0 to 1.
        right: True where the best class is right, ``(Q,)`` bool.
    """
    bins = (probabilities.double() * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, probabilities.double() - right.double())
    return (gaps.abs().sum() / len(right)).item()
