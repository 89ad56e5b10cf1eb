"""Probes against scikit-learn, and the transductive heads against their objectives and simple tasks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from small_models import small_recognizer
from torch.nn import functional

from dmgal.backbones import VideoState
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.heads import HEADS, TIM, FineTuned, LaplacianShot, LogisticProbe, RidgeProbe, VectorHead
from dmgal.errors import DmgalError

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2, 2])


def vectors(count: int, seed: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)


def with_ones(values: torch.Tensor) -> np.ndarray:
    return np.hstack([values.numpy(), np.ones((len(values), 1))])


@pytest.mark.parametrize("strength", [1.0, 0.1])
def test_logistic_probe_is_that_of_scikit_learn(strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    support, query = vectors(8, 1), vectors(5, 2)
    fitted = linear_model.LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fitted.fit(with_ones(support), LABELS.numpy())
    expected = fitted.predict_log_proba(with_ones(query))
    found = LogisticProbe(strength).classify(support, LABELS, query).log_softmax(dim=-1)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("num_support", [5, 200])
def test_logistic_probe_has_converged(num_support: int) -> None:
    support, labels = vectors(num_support, 1, width=40), torch.arange(num_support) % 5
    products, members = support @ support.T + 1, functional.one_hot(labels).double()
    found = LogisticProbe().coefficients(products, members)
    residual = (products @ found).softmax(dim=-1) - members + found  # the gradient is zero at the minimum
    assert residual.abs().max() < 1e-7


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_ridge_probe_solves_the_normal_equations(strength: float) -> None:
    support, query = torch.from_numpy(with_ones(vectors(8, 1))), torch.from_numpy(with_ones(vectors(5, 2)))
    members, identity = functional.one_hot(LABELS).double(), torch.eye(13, dtype=torch.float64)
    weights = torch.linalg.solve(support.T @ support + strength * identity, support.T @ members)
    found = RidgeProbe(strength, scale=1.0).classify(support[:, :-1], LABELS, query[:, :-1])
    torch.testing.assert_close(found, query @ weights)


def logits_of(head: FineTuned, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if head.classifier == "linear":
        return torch.from_numpy(with_ones(values)) @ weights
    return head.scale * functional.normalize(values, dim=-1) @ functional.normalize(weights, dim=0)


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_fine_tuned_head_is_that_of_torch_sgd(classifier: str) -> None:
    head = FineTuned(classifier, steps=30, weight_decay=0.01)
    support, query, members = vectors(8, 1), vectors(5, 2), functional.one_hot(LABELS).double()
    means = support.T @ members / members.sum(dim=0)
    weights = torch.nn.Parameter(torch.zeros(13, 3, dtype=torch.float64) if classifier == "linear" else means)
    rate = head.rate if classifier == "linear" else head.rate / head.scale**2
    optimizer = torch.optim.SGD([weights], lr=rate, momentum=head.momentum, weight_decay=head.weight_decay)
    for _ in range(head.steps):
        optimizer.zero_grad()
        functional.cross_entropy(logits_of(head, weights, support), LABELS).backward()
        optimizer.step()
    torch.testing.assert_close(head.classify(support, LABELS, query), logits_of(head, weights, query).detach())


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_fine_tuned_head_fits_its_support(classifier: str) -> None:
    support = vectors(8, 1)
    logits = FineTuned(classifier).classify(support, LABELS, support)
    assert (logits.argmax(dim=-1) == LABELS).all() and functional.cross_entropy(logits, LABELS) < 0.3


def information(head: TIM, support, members, query, weights) -> float:
    """Return TIM's loss, which its updates decrease."""
    log_support, log_query = (head.logits(one, weights).log_softmax(dim=-1) for one in (support, query))
    marginal = log_query.exp().mean(dim=0)
    conditional = -(log_query.exp() * log_query).sum(dim=-1).mean()
    cross_entropy = -(members * log_support).sum(dim=-1).mean()
    return float(
        head.cross_entropy * cross_entropy + (marginal * marginal.log()).sum() + head.conditional * conditional
    )


def test_tim_decreases_its_loss() -> None:
    support, query = vectors(8, 1), vectors(9, 2)
    head, members = TIM(), functional.one_hot(LABELS).double()
    weights = members.T @ support / members.sum(dim=0)[:, None]
    losses = []
    for _ in range(60):
        losses.append(information(head, support, members, query, weights))
        targets = head.query_labels(head.logits(query, weights).softmax(dim=-1))
        weights = head.update(weights, support, members, query, targets)
    assert losses[-1] < losses[0] - 0.05 and losses[-1] < losses[10]


def test_tim_steps_down_the_gradient_of_its_bound() -> None:
    """For given labels of the queries, a step is the gradient of both cross-entropies, scaled for each class."""
    support, query = vectors(8, 1), vectors(9, 2)
    head, members = TIM(cross_entropy=0.7, conditional=0.4), functional.one_hot(LABELS).double()
    weights = (members.T @ support / members.sum(dim=0)[:, None]).requires_grad_()
    targets = head.query_labels(head.logits(query, weights).softmax(dim=-1)).detach()
    log_support, log_query = (head.logits(one, weights).log_softmax(dim=-1) for one in (support, query))
    bound = -0.7 * (members * log_support).sum(dim=-1).mean() - 1.4 * (targets * log_query).sum(dim=-1).mean()
    [slope] = torch.autograd.grad(bound, weights)
    shares = 0.7 * members.mean(dim=0) + 1.4 * targets.mean(dim=0)
    expected = weights - slope / (head.temperature * shares[:, None])
    torch.testing.assert_close(head.update(weights, support, members, query, targets), expected)


def test_tim_and_laplacian_shot_use_the_other_queries() -> None:
    """A query between two classes follows a cluster of queries, which the support alone does not show."""
    support = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    cluster = [[0.95, 0.3], [0.9, 0.4], [0.85, 0.5], [0.8, 0.6], [0.75, 0.66], [0.69, 0.72]]
    query = functional.normalize(torch.tensor([*cluster, [0.0, 1.0]], dtype=torch.float64), dim=-1)
    labels = torch.tensor([0, 1])
    nearest = RidgeProbe().classify(support, labels, query).argmax(dim=-1)
    assert nearest[5] == 1 and nearest[6] == 1
    together = LaplacianShot(strength=0.5).classify(support, labels, query)
    assert together.argmax(dim=-1).tolist() == [0] * 6 + [1]
    alone = LaplacianShot(strength=0.5).classify(support, labels, query[5:6])
    torch.testing.assert_close(alone, -(query[5:6, None] - support).square().sum(dim=-1))
    assert TIM().classify(support, labels, query).argmax(dim=-1)[6] == 1


def test_laplacian_shot_never_increases_its_objective() -> None:
    support, query, head = vectors(8, 1), vectors(9, 2), LaplacianShot(strength=0.5)
    unary = (query[:, None] - torch.stack([support[c == LABELS].mean(dim=0) for c in range(3)])).square().sum(dim=-1)
    affinity = head.affinity(query)
    affinity = (affinity + affinity.T) / 2  # the bound holds for symmetric affinities
    assert head.affinity(query).sum(dim=-1).tolist() == [2.0] * 9 and not affinity.diagonal().any()
    labels, values = (-unary).softmax(dim=-1), []
    for _ in range(10):
        agreement = (labels * (affinity @ labels)).sum()
        values.append(float((labels * (labels.log() + unary)).sum() - 0.5 * agreement / 2))
        labels = (0.5 * affinity @ labels - unary).softmax(dim=-1)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(values))


def test_transductive_heads_are_marked_and_galleries_refuse_them() -> None:
    marked = {name for name, head in HEADS.items() if getattr(head, "transductive", False)}
    assert marked == {"TIM", "LaplacianShot"}
    states, recognizer = (
        PrecomputedStates.undivided(VideoState(vector=vectors(2, 1))),
        small_recognizer("nothing", 48, 2),
    )
    for head in (TIM(), LaplacianShot()):
        recognizer.head = head
        with pytest.raises(DmgalError, match="one by one"):
            GalleryTask(recognizer, states, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "head", [RidgeProbe(), LogisticProbe(), TIM(), LaplacianShot()], ids=lambda h: type(h).__name__
)
def test_many_tasks_at_once_equal_single_tasks(head: VectorHead) -> None:
    """The heads work under ``torch.vmap``, as cached evaluation uses them."""
    support, query = vectors(24, 1).reshape(3, 8, 12), vectors(15, 2).reshape(3, 5, 12)

    def logits(support, query):
        return head.compare(VideoState(vector=support), LABELS, VideoState(vector=query)).logits

    with torch.no_grad():
        together = torch.vmap(logits)(support, query)
    torch.testing.assert_close(together, torch.stack([logits(*task) for task in zip(support, query, strict=True)]))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RidgeProbe(0.0), "strength=0.0"),
        (lambda: LogisticProbe(1e-3), "at least 0.01"),
        (lambda: RidgeProbe(frames="some"), "frames='some'"),
        (lambda: TIM(iterations=-1), "iterations=-1"),
        (lambda: LaplacianShot(neighbors=0), "neighbors=0"),
        (lambda: RidgeProbe().prepare(torch.zeros(2, 3)), r"\(2, 3\)"),
    ],
)
def test_invalid_options_are_named(make, named: str) -> None:
    with pytest.raises(DmgalError, match=named):
        make()


LIMITS = [
    (FineTuned, "steps", 1, 0),
    (FineTuned, "rate", 1e-9, 0.0),
    (FineTuned, "momentum", 0.0, 1.0),
    (FineTuned, "weight_decay", 0.0, -1e-9),
    (FineTuned, "scale", 1e-9, 0.0),
    (LaplacianShot, "strength", 0.0, -1e-9),
    (LaplacianShot, "neighbors", 1, 0),
    (LaplacianShot, "iterations", 1, 0),
    (RidgeProbe, "strength", 1e-9, 0.0),
    (RidgeProbe, "scale", 1e-9, 0.0),
    (LogisticProbe, "strength", 0.01, 0.0099),
    (TIM, "temperature", 1e-9, 0.0),
    (TIM, "iterations", 0, -1),
    (TIM, "cross_entropy", 1e-9, 0.0),
    (TIM, "conditional", 0.0, -1e-9),
]


@pytest.mark.parametrize(("head", "option", "allowed", "refused"), LIMITS, ids=lambda part: str(part))
def test_options_end_at_their_limits(head, option, allowed, refused) -> None:
    assert getattr(head(**{option: allowed}), option) == allowed
    with pytest.raises(DmgalError, match=option):
        head(**{option: refused})
