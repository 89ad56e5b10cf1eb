"""OTAM: the released numbers, a plain recurrence as oracle, and what its paths allow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dmgal.episodes.heads import OTAM
from dmgal.episodes.heads.frame_distance import frame_distances
from dmgal.episodes.heads.otam import otam, otam_both_directions
from dmgal.errors import DmgalError


def random_distances(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def plain_otam(distances: list[list[float]], relaxation: float) -> float:
    """The recurrence cell by cell, for one pair of videos."""

    def soft_minimum(values: list[float]) -> float:
        least = min(values)
        return least - relaxation * math.log(sum(math.exp((least - value) / relaxation) for value in values))

    padded = [[0.0, *row, 0.0] for row in distances]
    last = len(padded[0]) - 1
    costs: list[list[float]] = []
    for t, row in enumerate(padded):
        costs.append([0.0])
        for s in range(1, last + 1):
            reached = [costs[t][s - 1]]
            if t > 0:
                reached.append(costs[t - 1][s - 1])
            if t > 0 and s in (1, last):
                reached.append(costs[t - 1][s])
            costs[t].append(row[s] + (soft_minimum(reached) if t > 0 else reached[0]))
    return costs[-1][-1]


@pytest.mark.parametrize(("relaxation", "name"), [(0.1, "0p1"), (0.5, "0p5")])
def test_golden(read_golden, assert_relatively_close, relaxation: float, name: str) -> None:
    tensors, _, _ = read_golden("otam")
    forward = tensors[f"distance_lambda_{name}"]
    assert_relatively_close(otam(tensors["frame_distances"], relaxation), forward)
    both = otam_both_directions(tensors["frame_distances"], relaxation)
    assert_relatively_close(OTAM(relaxation).video_distance(tensors["frame_distances"]), both)
    reverse = tensors.get(f"distance_reverse_lambda_{name}")
    if reverse is not None:
        assert_relatively_close(otam(tensors["frame_distances"].transpose(-2, -1), relaxation), reverse)
        assert_relatively_close(both, forward + reverse)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (1, 4), (4, 1), (2, 2), (3, 5), (16, 16)])
@pytest.mark.parametrize("relaxation", [0.01, 0.1, 0.5, 5.0])
def test_distance_equals_the_plain_recurrence(shape: tuple[int, int], relaxation: float) -> None:
    distances = random_distances(3, 2, *shape).double()
    ours = otam(distances, relaxation)
    expected = [[plain_otam(pair.tolist(), relaxation) for pair in row] for row in distances]
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))
    both = ours + otam(distances.transpose(-2, -1), relaxation)
    torch.testing.assert_close(otam_both_directions(distances, relaxation), both)


def test_small_relaxation_finds_the_cheapest_path() -> None:
    distances = torch.tensor([[0.0, 9.0, 9.0], [9.0, 1.0, 9.0], [9.0, 9.0, 2.0]])
    assert otam(distances, 1e-3).item() == pytest.approx(3.0, abs=0.02)


def test_gradients_are_exact() -> None:
    distances = random_distances(2, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(otam_both_directions, (distances, 0.2))


def test_extreme_distances_stay_finite() -> None:
    for value in (0.0, 2.0):
        distances = torch.full((1, 1, 32, 32), value, requires_grad=True)
        cost = otam(distances, 0.01)
        cost.sum().backward()
        assert cost.isfinite().all() and distances.grad.isfinite().all()


def test_order_of_frames_changes_logits() -> None:
    video = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    same, reversed_ = (otam_both_directions(frame_distances(other, video)) for other in (video, video.flip(1)))
    assert same < reversed_


@pytest.mark.parametrize("relaxation", [0.0, -0.1])
def test_invalid_relaxation_raises(relaxation: float) -> None:
    with pytest.raises(DmgalError, match="relaxation"):
        otam(random_distances(2, 2), relaxation)
