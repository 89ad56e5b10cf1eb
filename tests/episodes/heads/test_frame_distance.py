"""Behavior of all heads on frame distances: the cosine, centering, shots and the scale of the logits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dmgal.episodes.heads import OTAM, BiMHM, FrameAligned, FrameDistanceHead
from dmgal.episodes.heads.frame_distance import bi_mhm, center_frames, class_means, frame_distances
from dmgal.errors import DmgalError

HEADS = [BiMHM, OTAM, FrameAligned]


def videos(count: int, frames: int = 4, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, frames, width, generator=torch.Generator().manual_seed(seed))


def logits(head: FrameDistanceHead, support: torch.Tensor, labels: list[int], query: torch.Tensor) -> torch.Tensor:
    return head.compare(head.prepare(support), torch.tensor(labels), head.prepare(query)).logits


class TestFrameDistances:
    def test_each_entry_is_the_distance_of_its_pair(self) -> None:
        query, support = videos(2, 3), videos(4, 5, seed=1)
        distances = frame_distances(query, support, eps=0.0)
        assert distances.shape == (2, 4, 3, 5)
        for q, s, t, u in itertools.product(range(2), range(4), range(3), range(5)):
            expected = 1 - functional.cosine_similarity(query[q, t], support[s, u], dim=0)
            torch.testing.assert_close(distances[q, s, t, u], expected)

    def test_eps_is_added_to_the_product_of_norms(self) -> None:
        query, support = torch.tensor([[[0.3, 0.0]]]), torch.tensor([[[0.2, 0.0]]])
        assert frame_distances(query, support, eps=0.04).item() == pytest.approx(1 - 0.06 / 0.10)

    def test_frames_of_zeros_have_finite_distances_and_gradients(self) -> None:
        query, support = torch.zeros(1, 2, 4, requires_grad=True), videos(1, 2, 4)
        distances = frame_distances(query, torch.cat((support, torch.zeros(1, 2, 4))), eps=0.0)
        assert torch.equal(distances, torch.ones_like(distances))
        distances.sum().backward()
        assert query.grad.isfinite().all()

    @settings(max_examples=25, deadline=None)
    @given(scale=st.floats(1e-6, 1e6))
    def test_without_eps_the_scale_of_features_is_nothing(self, scale: float) -> None:
        query, support = videos(1), videos(2, seed=1)
        torch.testing.assert_close(frame_distances(scale * query, support, 0.0), frame_distances(query, support, 0.0))


class TestCentering:
    def test_what_does_not_move_is_removed(self) -> None:
        features = videos(3)
        centered = center_frames(features)
        torch.testing.assert_close(centered.mean(dim=1), torch.zeros(3, 8))
        torch.testing.assert_close(center_frames(features + 5 * videos(3, 1, seed=1)), centered, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("frames", [1, 2, 7, 8, 16])
    def test_a_still_video_becomes_zero_not_noise(self, frames: int, dtype: torch.dtype) -> None:
        still = (100 * videos(3, 1)).to(dtype).expand(-1, frames, -1)
        assert not center_frames(still).any()

    def test_the_mean_is_not_rounded_to_bfloat16(self) -> None:
        features = (videos(2) * 0.1 + 10).bfloat16()
        expected = features.float() - features.float().mean(dim=1, keepdim=True)
        torch.testing.assert_close(center_frames(features).float(), expected, atol=1e-5, rtol=0.005)

    @pytest.mark.parametrize("head", HEADS)
    def test_both_starts_as_the_mean_of_both(self, head: type[FrameDistanceHead]) -> None:
        task = videos(4), [0, 1, 0, 1], videos(3, seed=1)
        parts = [logits(head(center=center), *task) for center in ("none", "video")]
        torch.testing.assert_close(logits(head(center="both"), *task), (parts[0] + parts[1]) / 2)

    def test_the_weights_of_both_stay_positive(self) -> None:
        head = BiMHM(center="both")
        with torch.no_grad():
            head.log_weights.fill_(-30.0)
        assert (head.log_weights.exp() > 0).all()
        assert logits(head, videos(2), [0, 1], videos(1, seed=1)).abs().max() < 1e-6


class TestShots:
    def test_means_of_unequal_classes(self) -> None:
        values = torch.tensor([[1.0], [2.0], [4.0], [6.0]])
        assert class_means(values, torch.tensor([1, 0, 1, 1])).flatten().tolist() == pytest.approx([2.0, 11 / 3])

    def test_a_prototype_is_the_mean_of_features(self) -> None:
        support, query = videos(4), videos(3, seed=1)
        expected = -bi_mhm(frame_distances(query, torch.stack((support[::2].mean(0), support[1::2].mean(0)))))
        ours = logits(BiMHM(shots="prototype"), support, [0, 1, 0, 1], query)
        torch.testing.assert_close(ours, expected)
        assert not torch.allclose(ours, logits(BiMHM(), support, [0, 1, 0, 1], query))

    @pytest.mark.parametrize("head", HEADS)
    def test_with_one_shot_both_are_the_same(self, head: type[FrameDistanceHead]) -> None:
        task = videos(3), [2, 0, 1], videos(2, seed=1)
        torch.testing.assert_close(logits(head(shots="prototype"), *task), logits(head(), *task))

    def test_a_class_without_support(self) -> None:
        with pytest.raises(DmgalError, match=r"labels \[0, 2\]"):
            logits(BiMHM(), videos(2), [0, 2], videos(1))

    def test_labels_of_other_videos(self) -> None:
        with pytest.raises(DmgalError, match="3 support videos"):
            logits(BiMHM(), videos(3), [0, 1], videos(1))


class TestScale:
    @pytest.mark.parametrize("head", [BiMHM, OTAM])
    def test_twice_the_frames_is_the_published_form(self, head: type[FrameDistanceHead]) -> None:
        task = videos(3, frames=4), [0, 1, 2], videos(2, frames=4, seed=1)
        torch.testing.assert_close(logits(head(logit_scale=8.0), *task), logits(head(), *task))

    @pytest.mark.parametrize("head", [BiMHM, FrameAligned])
    def test_the_scale_means_the_same_for_any_number_of_frames(self, head: type[FrameDistanceHead]) -> None:
        support, query = videos(3), videos(2, seed=1)
        slow = [features.repeat_interleave(2, dim=1) for features in (support, query)]
        short = logits(head(logit_scale=10.0), support, [0, 1, 2], query)
        torch.testing.assert_close(logits(head(logit_scale=10.0), slow[0], [0, 1, 2], slow[1]), short)

    def test_the_learned_scale_is_an_exponent(self) -> None:
        head = BiMHM(logit_scale=10.0)
        assert [name for name, _ in head.named_parameters()] == ["log_scale"]
        assert head.log_scale.item() == pytest.approx(math.log(10.0))
        assert head.log_scale.requires_grad and not BiMHM(logit_scale=10.0, learn_scale=False).log_scale.requires_grad

    def test_the_published_form_learns_nothing(self) -> None:
        assert not list(BiMHM().parameters()) and not BiMHM().state_dict()


class TestPrecision:
    @pytest.mark.parametrize("head", HEADS)
    def test_logits_are_float32_under_autocast(self, head: type[FrameDistanceHead]) -> None:
        task = videos(3), [0, 1, 2], videos(2, seed=1)
        expected = logits(head(center="both", logit_scale=10.0), *task)
        with torch.autocast("cpu", torch.bfloat16):
            ours = logits(head(center="both", logit_scale=10.0), *task)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected)

    def test_float64_is_kept(self) -> None:
        """So that losses of several processes can be compared far below float32's rounding."""
        ours = logits(BiMHM(logit_scale=10.0), videos(2).double(), [0, 1], videos(1, seed=1).double())
        assert ours.dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [{"center": "mean"}, {"shots": "sum"}, {"eps": -1.0}, {"logit_scale": 0.0}],
    ids=lambda options: str(options),
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(DmgalError, match=next(iter(options))):
        BiMHM(**options)


def test_patch_maps_are_refused_with_the_way_out() -> None:
    with pytest.raises(DmgalError, match="pooling"):
        BiMHM().prepare(torch.zeros(2, 4, 8, 7, 7))
