"""Merging of windows into segments."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmgal.episodes.gallery.recognition import Segment, Timeline, WindowScore


def merge(windows, stride, threshold=None):
    timeline = Timeline(stride)
    for window in windows:
        timeline.add(replace(window, known=threshold is None or window.logit >= threshold))
    return timeline.finish()


def rounded(segments):
    return [(round(s.start, 3), round(s.end, 3), s.label, round(s.probability, 3)) for s in segments]


def test_cell_shows_best_window():
    windows = [
        WindowScore(0, 2, label=0, logit=-1.0, probability=0.9),
        WindowScore(1, 3, label=1, logit=-5.0, probability=0.5),  # across both actions, so it fits neither
        WindowScore(2, 4, label=2, logit=-1.0, probability=0.7),
        WindowScore(3, 5, label=2, logit=-1.5, probability=0.5),
    ]
    assert rounded(merge(windows, stride=1)) == [(0, 2, 0, 0.9), (2, 5, 2, 0.633)]


def test_cells_below_threshold_are_unknown():
    windows = [WindowScore(t, t + 1, label=t % 3, logit=-float(t), probability=0.5) for t in range(5)]
    assert rounded(merge(windows, 1, threshold=-1.5)) == [(0, 1, 0, 0.5), (1, 2, 1, 0.5), (2, 5, None, 0.5)]
    assert [segment.label for segment in merge(windows, 1)] == [0, 1, 2, 0, 1]


def test_last_segment_ends_with_the_video():
    windows = [WindowScore(0, 2, 0, 1.0, 0.5), WindowScore(1, 2.7, 0, 1.0, 0.5)]
    assert rounded(merge(windows, 1)) == [(0, 2.7, 0, 0.5)]
    assert rounded(merge([WindowScore(0, 0.2, 3, 1.0, 0.5)], 1)) == [(0, 0.2, 3, 0.5)]
    assert merge([], 1) == []


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-4, 0), st.floats(0, 1)), min_size=1, max_size=30),
    st.sampled_from([0.25, 0.3, 1.0]),
    st.integers(1, 4),
    st.sampled_from([None, -2]),
)
def test_segments_have_no_gaps_and_alternate(scores, stride, overlap, threshold):
    windows = [
        WindowScore(place * stride, (place + overlap) * stride, label, logit, probability)
        for place, (label, logit, probability) in enumerate(scores)
    ]
    segments: list[Segment] = merge(windows, stride, threshold)
    assert segments[0].start == 0 and segments[-1].end == pytest.approx(windows[-1].end)
    for one, other in pairwise(segments):
        assert one.start < one.end == pytest.approx(other.start) and one.label != other.label
    assert all(0 <= segment.probability <= 1 + 1e-9 for segment in segments)
