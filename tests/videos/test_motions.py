"""Tests of the motions of moving shapes: reversals, names, split and oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmgal.bench.moving_shapes_checks import classify_trajectories, joined
from dmgal.videos.moving_shapes.clips import MovingShapes, place_at_random
from dmgal.videos.moving_shapes.drawing import Poses
from dmgal.videos.moving_shapes.motions import Jitter, Motion, all_motions, random_jitter, split_motions

MOTIONS = all_motions()
BY_NAME = {motion.name: motion for motion in MOTIONS}
TIMES = torch.linspace(-1, 1, 16, dtype=torch.float64)
seeds = st.integers(100, 2**40)  # 0 to 2 are reserved for reports


def moves(motion: Motion, count: int = 6, seed: int = 0) -> torch.Tensor:
    """Return the offsets of a motion as ``(4, n, T)``."""
    offsets = motion.offsets(TIMES, random_jitter(count, torch.Generator().manual_seed(seed)))
    return torch.stack((offsets.x, offsets.y, offsets.log_size, offsets.angle))


def many_clips(motion: Motion, count: int, seed: int) -> Poses:
    generator = torch.Generator().manual_seed(seed)
    return place_at_random(motion.offsets(TIMES, random_jitter(count, generator)), generator)


class TestMotions:
    def test_hundred_classes_with_distinct_names(self):
        assert len(MOTIONS) == len(BY_NAME) == 100

    def test_reversal_is_the_motion_backward_in_time(self):
        paired = [motion for motion in MOTIONS if motion.reversal]
        assert len(paired) == 92
        for motion in paired:
            other = BY_NAME[motion.reversal]
            assert other.reversal == motion.name
            torch.testing.assert_close(moves(motion).flip(-1), moves(other))
            assert not torch.allclose(moves(motion), moves(other), atol=0.05)

    def test_class_without_reversal_is_its_own_reversal(self):
        own = [motion for motion in MOTIONS if motion.reversal is None]
        assert {motion.family for motion in own} == {"oscillate"}
        jitter = random_jitter(6, torch.Generator().manual_seed(0))
        mirrored = Jitter(jitter.amplitude, jitter.rate, jitter.heading, torch.pi - jitter.phase)
        for motion in own:
            torch.testing.assert_close(motion.offsets(TIMES, mirrored).x, moves(motion)[0].flip(-1))
            torch.testing.assert_close(motion.offsets(TIMES, mirrored).y, moves(motion)[1].flip(-1))

    @pytest.mark.parametrize(
        "motion", [m for m in MOTIONS if m.name[-3:].isdigit() or m.family == "translate"], ids=lambda m: m.name
    )
    def test_heading_matches_name(self, motion):
        heading = torch.deg2rad(torch.tensor(float(next(p for p in motion.name.split("_") if p.isdigit()))).double())
        x, y, _, _ = moves(motion)
        along = (x[:, -1] - x[:, 0]) * heading.cos() + (y[:, -1] - y[:, 0]) * heading.sin()
        across = (y[:, -1] - y[:, 0]) * heading.cos() - (x[:, -1] - x[:, 0]) * heading.sin()
        assert (along > 0.3).all() and (across.abs() < 0.5 * along).all()

    @pytest.mark.parametrize("family", ["arc", "orbit"])
    def test_curve_direction_matches_name(self, family):
        for motion in (m for m in MOTIONS if m.family == family):
            x, y, _, _ = moves(motion).diff(dim=-1)
            turn = (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).mean(dim=1)  # y points down, so positive is clockwise
            assert (turn * (1 if "right" in motion.name else -1) > 0).all(), motion.name

    def test_turn_and_growth_match_name(self):
        for motion in MOTIONS:
            _, _, log_size, angle = moves(motion)[..., -1] - moves(motion)[..., 0]
            grows = motion.name.startswith("grow") - motion.name.startswith("shrink")
            turns = "rotate_right" in motion.name or "spin_right" in motion.name
            turns = turns - ("rotate_left" in motion.name or "spin_left" in motion.name)
            assert (log_size.sign() == grows).all() and (angle.sign() == turns).all(), motion.name


class TestSplit:
    @settings(max_examples=60)
    @given(seeds)
    def test_sizes_pairs_and_families(self, seed):
        split = split_motions(seed)
        assert {name: len(classes) for name, classes in split.items()} == {"train": 64, "val": 12, "test": 24}
        assert sorted(c for classes in split.values() for c in classes) == list(range(100))
        for classes in split.values():
            assert {c ^ 1 for c in classes} == set(classes)
        reversible = {name: sum(MOTIONS[c].reversal is not None for c in classes) for name, classes in split.items()}
        assert reversible["test"] == 22 and reversible["val"] >= 10
        families = {name: {MOTIONS[c].family for c in classes} for name, classes in split.items()}
        assert len(families["test"]) == 9 and len(families["val"]) == 5 and len(families["train"]) == 11

    def test_seed_determines_split(self):
        assert split_motions(100) == split_motions(100) != split_motions(101)


class TestOracle:
    @pytest.mark.parametrize("seed", [100, 101])
    def test_oracle_classifies_trajectories(self, seed):
        shapes, novel = MovingShapes(seed=seed), split_motions(seed)["test"]
        poses = joined([shapes.poses(c, clip) for c in novel for clip in range(5)])
        predicted = classify_trajectories(poses, [MOTIONS[c] for c in novel])
        assert (predicted == torch.arange(24).repeat_interleave(5)).double().mean() >= 0.95

    def test_oracle_classifies_backward_clip_as_reversal(self):
        names = ["arc_right_060", "arc_left_240", "stop_go_000", "go_stop_180", "orbit_left_wide_fast"]
        names += [BY_NAME[names[-1]].reversal]
        poses = joined([many_clips(BY_NAME[name], 4, seed=3) for name in names])
        backward = Poses(*(getattr(poses, q).flip(-1) for q in ("x", "y", "size", "angle")))
        predicted = classify_trajectories(backward, [BY_NAME[name] for name in names])
        assert predicted.tolist() == torch.tensor([1, 0, 3, 2, 5, 4]).repeat_interleave(4).tolist()
