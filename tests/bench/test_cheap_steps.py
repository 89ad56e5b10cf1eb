"""Cheap training steps: every case is measured, and remembered frames keep the frozen blocks from running."""

from __future__ import annotations

from dmgal.bench import cheap_steps

SMALL = cheap_steps.Options(frames=2, pixels=32, depth=3, rounds=1)


def test_every_case_has_time_and_memory():
    found = cheap_steps.measure(SMALL)
    assert next(iter(found)) == cheap_steps.BASE and len(found) == 6
    assert all(case["time_ratio"]["median"] > 0 for name, case in found.items() if name != cheap_steps.BASE)
    assert found["side network"]["live_mb"] < found[cheap_steps.BASE]["live_mb"]


def test_remembered_frames_skip_the_frozen_blocks():
    work, counts = cheap_steps.steps_of(SMALL)["late Smga, remembered"], []
    encoder = work.args[0].encoder
    encoder._blocks()[0].register_forward_hook(lambda *_: counts.append(1))
    work()
    first = len(counts)
    work()
    assert first == 20 == len(counts)
