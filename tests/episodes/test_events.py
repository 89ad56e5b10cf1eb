"""Events of a live video: hysteresis, patience, and times in the middle of the windows."""

from __future__ import annotations

import pytest

from dmgal.episodes.gallery.events import EventDetector, EventRule
from dmgal.episodes.gallery.recognition import WindowScore
from dmgal.episodes.gallery.windows import WindowPlan
from dmgal.errors import DmgalError

PLAN = WindowPlan(2.0, 0.5)  # window k is [k/2, k/2 + 2), and speaks for [k/2 + 0.75, k/2 + 1.25)


def events_of(rule: EventRule, *windows: tuple[str, float]) -> list[tuple[str, float, float, int]]:
    """Return ``(action, start, end, windows)`` of the events that ended. ``?`` is unknown."""
    detector, over = EventDetector(PLAN, rule), []
    for index, (label, probability) in enumerate(windows):
        start = index * PLAN.stride
        number, is_known = max(0, "ab".find(label)), label != "?"
        over += detector.add(WindowScore(start, start + PLAN.seconds, number, 1.0, probability, is_known))
    over += detector.finish()
    begun = [event for event in over if not event.is_over]
    assert [event.start for event in begun] == [event.start for event in over if event.is_over]
    return [("ab"[event.label], event.start, event.end, event.windows) for event in over if event.is_over]


@pytest.mark.parametrize(
    ("windows", "events"),
    [
        ([("a", 0.5)] * 4, []),  # never likely enough to begin
        ([("a", 0.6), ("a", 0.4), ("a", 0.39), ("a", 0.39)], [("a", 0.75, 1.75, 2)]),  # hysteresis
        ([("a", 0.9), ("?", 0.9), ("a", 0.5), ("?", 0.9), ("?", 0.9)], [("a", 0.75, 2.25, 2)]),  # patience
        ([("a", 0.9), ("b", 0.5), ("a", 0.9)], [("a", 0.75, 2.25, 2)]),  # another class for a moment
        ([("a", 0.9), ("b", 0.9), ("b", 0.9)], [("a", 0.75, 1.25, 1), ("b", 1.25, 2.25, 2)]),
        ([("?", 1.0)] * 3, []),
        ([("a", 0.9)], [("a", 0.75, 1.25, 1)]),  # the source ends
    ],
)
def test_events_begin_and_end(windows, events):
    assert events_of(EventRule(0.6, 0.4, 2), *windows) == events


@pytest.mark.parametrize(("seconds", "event"), [(0.25, (0.0, 0.25)), (0.5, (0.0, 0.5)), (1.0, (0.25, 0.75))])
def test_a_video_shorter_than_a_window_has_its_event_inside(seconds, event):
    detector = EventDetector(PLAN, EventRule())
    list(detector.add(WindowScore(0.0, seconds, 0, 1.0, 0.9)))
    [over] = detector.finish()
    assert (over.start, over.end) == event


def test_the_probability_is_the_mean_of_its_windows():
    detector = EventDetector(PLAN, EventRule())
    for index, probability in enumerate((0.9, 0.5, 0.7)):
        list(detector.add(WindowScore(index / 2, index / 2 + 2, 0, 1.0, probability)))
    [event] = detector.finish()
    assert event.probability == pytest.approx(0.7) and list(detector.finish()) == []


@pytest.mark.parametrize("rule", [(0.4, 0.6, 2), (1.2, 0.4, 2), (0.6, -0.1, 2), (0.6, 0.4, 0)])
def test_impossible_rules_are_refused(rule):
    with pytest.raises(DmgalError, match="stay"):
        EventRule(*rule)
