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

    def test_zero_frames_have_finite_distances_and_gradients(self) -> None:
        query, support = torch.zeros(1, 2, 4, requires_grad=True), videos(1, 2, 4)
        distances = frame_distances(query, torch.cat((support, torch.zeros(1, 2, 4))), eps=0.0)
        assert torch.equal(distances, torch.ones_like(distances))
        distances.sum().backward()
        assert query.grad.isfinite().all()

    @settings(max_examples=25)
    @given(scale=st.floats(1e-6, 1e6))
    def test_distances_without_eps_ignore_the_scale_of_features(self, scale: float) -> None:
        query, support = videos(1), videos(2, seed=1)
        torch.testing.assert_close(frame_distances(scale * query, support, 0.0), frame_distances(query, support, 0.0))


class TestCentering:
    def test_centering_removes_static_content(self) -> None:
        features = videos(3)
        centered = center_frames(features)
        torch.testing.assert_close(centered.mean(dim=1), torch.zeros(3, 8))
        torch.testing.assert_close(center_frames(features + 5 * videos(3, 1, seed=1)), centered, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("frames", [1, 2, 7, 8, 16])
    def test_centered_still_video_is_zero(self, frames: int, dtype: torch.dtype) -> None:
        still = (100 * videos(3, 1)).to(dtype).expand(-1, frames, -1)
        assert not center_frames(still).any()

    def test_mean_is_not_rounded_to_bfloat16(self) -> None:
        features = (videos(2) * 0.1 + 10).bfloat16()
        expected = features.float() - features.float().mean(dim=1, keepdim=True)
        torch.testing.assert_close(center_frames(features).float(), expected, atol=1e-5, rtol=0.005)

    @pytest.mark.parametrize("head", HEADS)
    def test_center_both_starts_as_the_mean_of_both_distances(self, head: type[FrameDistanceHead]) -> None:
        task = videos(4), [0, 1, 0, 1], videos(3, seed=1)
        parts = [logits(head(center=center), *task) for center in ("none", "video")]
        torch.testing.assert_close(logits(head(center="both"), *task), (parts[0] + parts[1]) / 2)

    def test_weights_of_center_both_stay_positive(self) -> None:
        head = BiMHM(center="both")
        with torch.no_grad():
            head.log_weights.fill_(-30.0)
        assert (head.log_weights.exp() > 0).all()
        assert logits(head, videos(2), [0, 1], videos(1, seed=1)).abs().max() < 1e-6


class TestShots:
    def test_class_means_with_unequal_shots(self) -> None:
        values = torch.tensor([[1.0], [2.0], [4.0], [6.0]])
        assert class_means(values, torch.tensor([1, 0, 1, 1])).flatten().tolist() == pytest.approx([2.0, 11 / 3])

    def test_prototype_is_the_mean_of_features(self) -> None:
        support, query = videos(4), videos(3, seed=1)
        expected = -bi_mhm(frame_distances(query, torch.stack((support[::2].mean(0), support[1::2].mean(0)))))
        ours = logits(BiMHM(shots="prototype"), support, [0, 1, 0, 1], query)
        torch.testing.assert_close(ours, expected)
        assert not torch.allclose(ours, logits(BiMHM(), support, [0, 1, 0, 1], query))

    @pytest.mark.parametrize("head", HEADS)
    def test_one_shot_gives_equal_logits_for_both_options(self, head: type[FrameDistanceHead]) -> None:
        task = videos(3), [2, 0, 1], videos(2, seed=1)
        torch.testing.assert_close(logits(head(shots="prototype"), *task), logits(head(), *task))

    def test_class_without_support_raises(self) -> None:
        with pytest.raises(DmgalError, match=r"labels \[0, 2\]"):
            logits(BiMHM(), videos(2), [0, 2], videos(1))

    def test_wrong_number_of_labels_raises(self) -> None:
        with pytest.raises(DmgalError, match="3 support videos"):
            logits(BiMHM(), videos(3), [0, 1], videos(1))


class TestScale:
    @pytest.mark.parametrize("head", [BiMHM, OTAM])
    def test_scale_of_twice_the_frames_is_the_published_form(self, head: type[FrameDistanceHead]) -> None:
        task = videos(3, frames=4), [0, 1, 2], videos(2, frames=4, seed=1)
        torch.testing.assert_close(logits(head(logit_scale=8.0), *task), logits(head(), *task))

    @pytest.mark.parametrize("head", [BiMHM, FrameAligned])
    def test_scaled_logits_do_not_depend_on_the_number_of_frames(self, head: type[FrameDistanceHead]) -> None:
        support, query = videos(3), videos(2, seed=1)
        slow = [features.repeat_interleave(2, dim=1) for features in (support, query)]
        short = logits(head(logit_scale=10.0), support, [0, 1, 2], query)
        torch.testing.assert_close(logits(head(logit_scale=10.0), slow[0], [0, 1, 2], slow[1]), short)

    def test_learned_scale_is_stored_as_its_logarithm(self) -> None:
        head = BiMHM(logit_scale=10.0)
        assert [name for name, _ in head.named_parameters()] == ["log_scale"]
        assert head.log_scale.item() == pytest.approx(math.log(10.0))
        assert head.log_scale.requires_grad and not BiMHM(logit_scale=10.0, learn_scale=False).log_scale.requires_grad

    def test_published_form_has_no_parameters(self) -> None:
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

    def test_float64_features_give_float64_logits(self) -> None:
        """So that losses of several processes can be compared far below float32's rounding."""
        ours = logits(BiMHM(logit_scale=10.0), videos(2).double(), [0, 1], videos(1, seed=1).double())
        assert ours.dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [{"center": "mean"}, {"shots": "sum"}, {"eps": -1.0}, {"logit_scale": 0.0}],
    ids=lambda options: str(options),
)
def test_invalid_options_raise(options: dict) -> None:
    with pytest.raises(DmgalError, match=next(iter(options))):
        BiMHM(**options)


def test_patch_maps_raise_and_name_the_pooling_option() -> None:
    with pytest.raises(DmgalError, match="pooling"):
        BiMHM().prepare(torch.zeros(2, 4, 8, 7, 7))
