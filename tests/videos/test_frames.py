"""Tests of the choice of frames: the middle of equal segments, or a random frame of each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmgal.errors import DmgalError
from dmgal.videos.decoding.clip import random_frames, uniform_frames

counts = st.integers(1, 500)
wanted = st.integers(1, 40)


def segments(num_frames: int, num_wanted: int) -> list[range]:
    """Return the frames that overlap each segment ``[i*n/T, (i+1)*n/T)``."""
    return [range(i * num_frames // num_wanted, -(-(i + 1) * num_frames // num_wanted)) for i in range(num_wanted)]


@given(counts, wanted)
def test_uniform_frames_are_sorted_and_in_their_segments(num_frames, num_wanted):
    frames = uniform_frames(num_frames, num_wanted)
    assert len(frames) == num_wanted and frames == sorted(frames)
    assert all(frame in segment for frame, segment in zip(frames, segments(num_frames, num_wanted), strict=True))


@given(counts, wanted, st.integers(0, 2**32))
def test_random_frames_are_sorted_and_in_their_segments(num_frames, num_wanted, seed):
    frames = random_frames(num_frames, num_wanted, torch.Generator().manual_seed(seed))
    assert len(frames) == num_wanted and frames == sorted(frames)
    assert all(frame in segment for frame, segment in zip(frames, segments(num_frames, num_wanted), strict=True))
    assert frames == random_frames(num_frames, num_wanted, torch.Generator().manual_seed(seed))


@given(wanted, st.integers(1, 20))
def test_uniform_frames_of_multiples_are_exact_middles(num_wanted, length):
    assert uniform_frames(num_wanted * length, num_wanted) == [i * length + length // 2 for i in range(num_wanted)]


@given(wanted, st.integers(0, 2**32))
def test_choosing_all_frames_returns_all_in_order(count, seed):
    assert uniform_frames(count, count) == list(range(count))
    assert random_frames(count, count, torch.Generator().manual_seed(seed)) == list(range(count))


@given(st.integers(1, 20), st.integers(1, 20))
def test_short_clips_repeat_each_frame_equally(num_frames, times):
    frames = uniform_frames(num_frames, num_frames * times)
    assert frames == [frame for frame in range(num_frames) for _ in range(times)]


def test_random_frames_are_uniform_in_their_segment():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([random_frames(12, 3, generator) for _ in range(3000)])
    for segment in range(3):
        shares = torch.bincount(drawn[:, segment] - 4 * segment, minlength=4) / len(drawn)
        assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.04)


@pytest.mark.parametrize(("num_frames", "num_wanted"), [(0, 8), (8, 0), (-1, 1)])
def test_counts_below_one_raise(num_frames, num_wanted):
    with pytest.raises(DmgalError, match=f"{num_wanted} frames wanted of a video of {num_frames}"):
        uniform_frames(num_frames, num_wanted)
    with pytest.raises(DmgalError):
        random_frames(num_frames, num_wanted, torch.Generator())
