"""S-MGA and C-MGA: golden outputs of the released code, and properties for any weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from dmgal.adapters.common import sinusoidal_position_code
from dmgal.adapters.mga import CrossMotionGuidedAttention, MotionFeatures, SelfMotionGuidedAttention
from dmgal.backbones.state import VideoState
from dmgal.errors import DmgalError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def read_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """Tensors, weights under the authors' names, and the settings of one golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        info = json.loads(file.metadata()["info"])
    weights = {key.removeprefix("weights."): tensors.pop(key) for key in list(tensors) if key.startswith("weights.")}
    return tensors, weights, info


def awaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere, so that no gamma of zero hides what a test should see; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def maps(videos: int, channels: int = 16, frames: int = 4, grid: tuple[int, int] = (5, 6), seed: int = 1) -> Tensor:
    return torch.randn(videos, frames, channels, *grid, generator=torch.Generator().manual_seed(seed))


def assert_relatively_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


class TestGoldens:
    def test_s_mga_matches_released_code(self) -> None:
        tensors, weights, info = read_golden("dmgal_s_mga")
        module = SelfMotionGuidedAttention(tensors["x"].shape[1], reduction=info["reduction"]).eval()
        module.load_reference_state_dict(weights)
        ours = module(tensors["x"].unflatten(0, (-1, info["frames"])))
        assert_relatively_close(ours.flatten(0, 1), tensors["y"])

    def test_c_mga_matches_released_code(self) -> None:
        tensors, weights, info = read_golden("dmgal_c_mga")
        module = CrossMotionGuidedAttention(tensors["query"].shape[1], reduction=info["reduction"]).eval()
        module.load_reference_state_dict(weights)
        support, query = module(*(tensors[name].unflatten(0, (-1, info["frames"])) for name in ("support", "query")))
        assert_relatively_close(support, tensors["support_out"])
        assert_relatively_close(query, tensors["query_out"])

    def test_position_code_equals_the_released_table(self) -> None:
        _, weights, _ = read_golden("dmgal_s_mga")
        table = weights["pe.pe"][0]
        assert_relatively_close(sinusoidal_position_code(*table.shape, like=table), table, 1e-6)

    def test_checkpoint_with_batch_counts_loads(self) -> None:
        tensors, weights, _ = read_golden("dmgal_s_mga")
        module = SelfMotionGuidedAttention(tensors["x"].shape[1])
        module.load_reference_state_dict({**weights, "bn1.num_batches_tracked": torch.tensor(7)})
        assert module.motion.reduce_norm.num_batches_tracked == 7

    @pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
    def test_unfitting_weights_leave_the_module_unchanged(self, change: str) -> None:
        _, weights, _ = read_golden("dmgal_s_mga")
        if change == "missing":
            del weights["conv.weight"]
        elif change == "unknown":
            weights["conv9.weight"] = torch.zeros(1)
        else:
            weights["conv.weight"] = torch.zeros(8, 1, 3, 3)
        module = SelfMotionGuidedAttention(32)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with pytest.raises(DmgalError, match=r"conv9|values\.weight"):
            module.load_reference_state_dict(weights)
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


class TestMotionFeatures:
    def test_still_video_has_motion_of_its_alignment_only(self) -> None:
        """With an alignment that does nothing, equal frames have no motion, so all frames have the features of zero."""
        module = awaken(MotionFeatures(16, 4))
        with torch.no_grad():
            module.align.weight.zero_()[:, :, 1, 1] = 1
        motion = module(maps(1, frames=1).expand(-1, 4, -1, -1, -1))
        torch.testing.assert_close(motion, motion[:1, :, -1:].expand_as(motion))

    def test_motion_is_zero_at_first_and_last_frame(self) -> None:
        """The last frame's forward and the first frame's backward features are those of a zero difference."""
        module = awaken(MotionFeatures(16, 4))
        forward, backward = module(maps(2))
        torch.testing.assert_close(forward[:, -1], backward[:, 0])
        assert not torch.allclose(forward[:, 0], backward[:, 0])

    def test_convolutions_start_with_the_released_spread(self) -> None:
        torch.manual_seed(0)
        module = MotionFeatures(512, 8)
        assert module.fine.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
        assert module.reduce.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)

    @pytest.mark.parametrize("reduction", [0, 17])
    def test_invalid_reduction_is_refused(self, reduction: int) -> None:
        with pytest.raises(DmgalError, match="reduction"):
            MotionFeatures(16, reduction)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (5, 6), (4, 9), (2, 2), (1, 1), (1, 6)])
@pytest.mark.parametrize("frames", [1, 3, 16])
def test_modules_accept_any_grid_and_number_of_frames(grid: tuple[int, int], frames: int) -> None:
    support, query = maps(2, frames=frames, grid=grid), maps(1, frames=frames, grid=grid, seed=2)
    attended = awaken(SelfMotionGuidedAttention(16, reduction=5))(support)
    assert attended.shape == support.shape and attended.isfinite().all()
    related = awaken(CrossMotionGuidedAttention(16, reduction=5))(support, query)
    assert [features.shape for features in related] == [support.shape, query.shape]
    assert all(features.isfinite().all() for features in related)


def test_initial_modules_are_identities() -> None:
    support, query = maps(3), maps(2, seed=2)
    assert torch.equal(SelfMotionGuidedAttention(16)(support), support)
    related = CrossMotionGuidedAttention(16)(support, query)
    assert torch.equal(related[0], support) and torch.equal(related[1], query)


def test_number_of_parameters_at_resnet50_width() -> None:
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())  # noqa: E731
    # reduce, two dense 3x3, merge, align, the values, three batch norms
    motion_and_values = 2048 * 256 + 2 * 9 * 256 * 256 + 256 * 256 + 9 * 256 + 9 * 2048 + 3 * 2 * 256
    assert count(SelfMotionGuidedAttention(2048)) == motion_and_values + 1 == 1_791_745
    assert count(CrossMotionGuidedAttention(2048)) == motion_and_values + 2 * 256 + 2


class TestTaskBoundary:
    """Per-video results do not depend on other videos."""

    def test_s_mga_handles_each_video_alone(self) -> None:
        module, features = awaken(SelfMotionGuidedAttention(16)), maps(3)
        alone = torch.cat([module(video[None]) for video in features])
        torch.testing.assert_close(module(features), alone)

    def test_c_mga_prepares_videos_alone_or_together(self) -> None:
        module, features = awaken(CrossMotionGuidedAttention(16)), maps(3)
        together = module.prepare(features)
        alone = VideoState.cat([module.prepare(video[None]) for video in features])
        assert together.num_videos == 3
        torch.testing.assert_close(dict(together), dict(alone))

    def test_support_features_do_not_depend_on_the_task(self) -> None:
        module, support = awaken(CrossMotionGuidedAttention(16)), maps(3)
        one, other = module(support, maps(2, seed=2))[0], module(support[:1], maps(4, seed=3))[0]
        torch.testing.assert_close(one[:1], other)

    def test_queries_do_not_affect_each_other(self) -> None:
        module, support, query = awaken(CrossMotionGuidedAttention(16)), maps(3), maps(4, seed=2)
        torch.testing.assert_close(module(support, query)[1][1:2], module(support, query[1:2])[1])

    def test_query_depends_on_every_support_video(self) -> None:
        module, support, query = awaken(CrossMotionGuidedAttention(16)), maps(3), maps(1, seed=2)
        assert not torch.allclose(module(support, query)[1], module(support[:2], query)[1])
        torch.testing.assert_close(module(support, query)[1], module(support.flip(0), query)[1])

    def test_relate_pooled_equals_pooled_relate(self) -> None:
        module, support, query = awaken(CrossMotionGuidedAttention(16)), maps(3), maps(2, seed=2)
        expected = [features.mean(dim=(-2, -1)) for features in module(support, query)]
        pooled = module.relate_pooled(*(module.pool(module.prepare(videos)) for videos in (support, query)))
        for ours, theirs in zip(pooled, expected, strict=True):
            assert_relatively_close(ours, theirs)

    def test_other_numbers_of_frames_are_refused(self) -> None:
        with pytest.raises(DmgalError, match="3 support frames, 4 query frames"):
            CrossMotionGuidedAttention(16)(maps(1, frames=3), maps(1, frames=4))


def test_reversed_video_has_reversed_features() -> None:
    """The attention does not see the sign of motion: why something after S-MGA must know the arrow of time."""
    module, features = awaken(SelfMotionGuidedAttention(16)), maps(2)
    torch.testing.assert_close(module(features.flip(1)), module(features).flip(1))
    shuffled = [2, 0, 3, 1]  # not any order will do: the motion does matter
    assert not torch.allclose(module(features[:, shuffled]), module(features)[:, shuffled], atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    module, features = awaken(SelfMotionGuidedAttention(16)), maps(2)
    assert torch.equal(module(features), module(features))
    module.dropout.train()
    assert not torch.equal(module(features), module(features))


def test_dropout_does_not_depend_on_the_batch() -> None:
    module, features = awaken(SelfMotionGuidedAttention(16)), maps(3)
    module.dropout.train()

    def seeded(videos: Tensor) -> Tensor:
        torch.manual_seed(0)
        return module(videos)

    torch.testing.assert_close(torch.cat([seeded(features[:1]), seeded(features[1:])]), seeded(features))


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_every_parameter(training: bool) -> None:
    own, cross = awaken(SelfMotionGuidedAttention(16)).train(training), awaken(CrossMotionGuidedAttention(16))
    features = maps(3).requires_grad_()
    (features.grad,) = torch.autograd.grad(cross.train(training)(own(features), own(maps(2)))[1].sin().sum(), features)
    cross(own(features), own(maps(2)))[1].sin().sum().backward()
    for name, parameter in [*own.named_parameters(), *cross.named_parameters(), ("features", features)]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_bfloat16_stays_near_float32() -> None:
    own, features = awaken(SelfMotionGuidedAttention(16)), maps(2)
    expected = own(features)
    ours = own.bfloat16()(features.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() < 0.03 * expected.norm()


def test_frames_without_videos_are_refused() -> None:
    with pytest.raises(DmgalError, match=r"\(8, 16, 7, 7\)"):
        SelfMotionGuidedAttention(16)(torch.zeros(8, 16, 7, 7))
