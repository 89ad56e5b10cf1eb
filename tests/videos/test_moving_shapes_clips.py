"""Tests of clips of moving shapes: no class information in single frames, and frames match the trajectory."""

from __future__ import annotations

import pytest
import torch

from dmgal.bench.moving_shapes_checks import (
    contrast_features,
    interval_of_chance,
    joined,
    pixel_features,
    pose_features,
    ridge_accuracy,
    single_frame_poses,
    unhidden_last_frames,
)
from dmgal.errors import DmgalError
from dmgal.videos.moving_shapes.clips import LOG_SIZE_SPREAD, PLACE_SPREAD, MovingShapes, place_at_random
from dmgal.videos.moving_shapes.drawing import COLORS, LOOKS, SHAPES, TEXTURES, Poses, random_appearance
from dmgal.videos.moving_shapes.motions import Jitter, Motion, all_motions, random_jitter, split_motions

MOTIONS = all_motions()
TIMES = torch.linspace(-1, 1, 16, dtype=torch.float64)


def many_clips(motion: Motion, count: int, seed: int) -> Poses:
    generator = torch.Generator().manual_seed(seed)
    return place_at_random(motion.offsets(TIMES, random_jitter(count, generator)), generator)


class TestSingleFrames:
    @pytest.mark.parametrize("motion", MOTIONS[::3], ids=lambda m: m.name)
    def test_mean_and_covariance_of_a_frame_are_equal_for_all_classes(self, motion):
        poses = many_clips(motion, 20_000, seed=1)
        quantities = torch.stack((poses.x, poses.y, (poses.size / 0.28).log()))
        spread = torch.tensor([PLACE_SPREAD, PLACE_SPREAD, LOG_SIZE_SPREAD])
        scaled = quantities.flatten(1) / spread[:, None]
        torch.testing.assert_close(scaled.mean(dim=1), torch.zeros(3), atol=0.03, rtol=0)
        torch.testing.assert_close(scaled.cov(), torch.eye(3), atol=0.04, rtol=0)
        assert poses.angle.cos().mean().abs() < 0.03 and poses.angle.sin().mean().abs() < 0.03

    @pytest.mark.parametrize("frames", [8, 16, 64])
    def test_largest_motions_fit(self, frames):
        largest = Jitter(*(torch.full((36, 1), value).double() for value in (1.12, 1.0, 0.0, 0.0)))
        phases = torch.linspace(0, 6.28, 36, dtype=torch.float64)[:, None]
        for motion in MOTIONS:
            for rate in (0.88, 1.12):
                jitter = Jitter(largest.amplitude, largest.rate * rate, largest.heading, phases)
                times = torch.linspace(-1, 1, frames, dtype=torch.float64)
                poses = place_at_random(motion.offsets(times, jitter), torch.Generator().manual_seed(0))
                assert poses.x.abs().max() < 1.25 and poses.y.abs().max() < 1.25
                assert poses.size.min() > 0.08 and poses.size.max() < 0.8

    def test_random_frames_classify_at_chance(self):
        novel, count = split_motions(100)["test"], 200
        poses = joined([many_clips(MOTIONS[c], count, seed=c) for c in novel])
        labels = torch.arange(24).repeat_interleave(count)
        frames = torch.randint(16, (24 * count,), generator=torch.Generator().manual_seed(2))
        is_training = torch.arange(24 * count) % 2 == 0
        one_frame = pose_features(single_frame_poses(poses, frames))
        low, high = interval_of_chance(24 * count // 2, 1 / 24)
        assert low <= ridge_accuracy(one_frame, labels, is_training) <= high
        # Negative control: the last frame is not random and shows if a motion has ended there.
        last = pose_features(single_frame_poses(poses, torch.full_like(frames, 15)))
        assert ridge_accuracy(last, labels, is_training) > 2 * high

    def test_pixels_of_random_frames_classify_at_chance(self):
        shapes, novel, count = MovingShapes(seed=100, frames=8, pixels=16), split_motions(100)["test"], 12
        generator = torch.Generator().manual_seed(3)
        clips = [shapes.clip(c, clip) for c in novel for clip in range(count)]
        images = torch.stack([clip[torch.randint(8, (), generator=generator)] for clip in clips])
        labels = torch.arange(24).repeat_interleave(count)
        is_training = torch.arange(24 * count) % 2 == 0
        low, high = interval_of_chance(24 * count // 2, 1 / 24)
        assert low <= ridge_accuracy(pixel_features(images), labels, is_training) <= high
        assert low <= ridge_accuracy(contrast_features(images), labels, is_training) <= high
        # Negative control: without random starts, the frame shows the end position of the motion.
        poses = joined([shapes.poses(c, clip) for c in novel for clip in range(count)])
        control = unhidden_last_frames(poses, 16, generator)
        assert ridge_accuracy(contrast_features(control), labels, is_training) > 2 * high

    def test_interval_of_chance(self):
        assert interval_of_chance(10, 0.5) == (0.2, 0.8)  # P(X <= 1) = 0.011, P(X <= 2) = 0.055
        low, high = interval_of_chance(360, 1 / 24)
        assert low < 1 / 24 < high < 0.07


class TestClips:
    def test_clip_depends_on_seed_class_and_number_only(self):
        shapes = MovingShapes(seed=100, frames=8, pixels=16)
        clip = shapes.clip(3, 1)
        assert clip.shape == (8, 3, 16, 16) and clip.dtype == torch.uint8
        assert torch.equal(clip, MovingShapes(seed=100, clips_per_class=2, frames=8, pixels=16).clip(3, 1))
        others = (shapes.clip(3, 2), shapes.clip(4, 1), MovingShapes(seed=101, frames=8, pixels=16).clip(3, 1))
        assert not any(torch.equal(clip, other) for other in others)

    def test_frames_match_the_trajectory(self):
        shapes = MovingShapes(seed=100)
        fast = [i for i, motion in enumerate(MOTIONS) if motion.name.endswith("_fast") and motion.family == "translate"]
        axis = (torch.arange(64) + 0.5) / 32 - 1
        ratios = []
        for number in fast:
            first, last = (shapes.clip(number, 0)[t].float() for t in (0, -1))
            first, last = (image - image.mean(dim=(-2, -1), keepdim=True) for image in (first, last))
            change = (first - last).abs().mean(dim=0)
            poses = shapes.poses(number, 0)
            distances = [
                ((axis[None] - poses.x[0, t]).square() + (axis[:, None] - poses.y[0, t]).square()).sqrt()
                for t in (0, -1)
            ]
            size = poses.size[0, 0]
            inside = (distances[0] < 0.4 * size) | (distances[1] < 0.4 * size)
            outside = (distances[0] > 1.5 * size) & (distances[1] > 1.5 * size)
            ratios.append(change[inside].mean() / change[outside].mean())
        assert torch.stack(ratios).median() > 2

    def test_looks_have_one_motion_and_nothing_else_in_common(self):
        first, second = (LOOKS[name] for name in ("dark", "bright"))
        assert not any({*getattr(first, part)} & {*getattr(second, part)} for part in ("shapes", "textures", "colors"))
        dark, bright = (MovingShapes(seed=100, frames=8, pixels=16, look=look) for look in ("dark", "bright"))
        poses = [vars(shapes.poses(3, 1)) for shapes in (dark, bright)]
        assert all(torch.equal(poses[0][name], poses[1][name]) for name in poses[0])
        brightness = [shapes.clip(3, clip).float().median() for shapes in (dark, bright) for clip in range(6)]
        assert max(brightness[:6]) < min(brightness[6:])

    def test_appearances_of_a_look_are_its_own(self):
        appearance = random_appearance(200, torch.Generator().manual_seed(0), LOOKS["bright"])
        assert {SHAPES[index] for index in appearance.shape.tolist()} == {*LOOKS["bright"].shapes}
        assert {TEXTURES[index] for index in appearance.texture.tolist()} == {*LOOKS["bright"].textures}
        for colors in (appearance.color, appearance.second_color):
            assert {[*COLORS][index] for index in colors.tolist()} == {*LOOKS["bright"].colors}
        assert (appearance.color != appearance.second_color).all()

    @pytest.mark.parametrize(
        "wrong", [{"frames": 7}, {"pixels": 31}, {"seed": -1}, {"clips_per_class": 0}, {"look": "x"}]
    )
    def test_values_out_of_range_raise(self, wrong):
        with pytest.raises(DmgalError, match=next(iter(wrong))):
            MovingShapes(**wrong)
