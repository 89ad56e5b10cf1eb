"""Cases and ratios of bench/training.py."""

from __future__ import annotations

import json

import pytest
from small_models import small_recognizer

from dmgal.bench import memory, training

SMALL = {"image_size": 48, "frames": 4}


@pytest.mark.parametrize("name", training.CASES)
@pytest.mark.slow
def test_a_case_is_measured(monkeypatch, name):
    monkeypatch.setattr(memory, "recognizer", small_recognizer)
    found = training.measure_case(training.Options(case=name, **SMALL))
    assert found["seconds"] > 0 and found["peak_mb"] >= 0
    needed = {key for key, one, other in training.RATIOS.values() if name in (one, other)}
    assert needed <= set(found)


def test_ratios_are_taken_between_cases_that_exist():
    for ratios, cases in ((training.RATIOS, training.CASES), (training.COMPILED_RATIOS, training.COMPILED)):
        assert {case for _, *sides in ratios.values() for case in sides} == set(cases)


@pytest.mark.slow
def test_the_whole_bench_on_vit_b_16(tmp_path):
    out = tmp_path / "training.json"
    training.main(["--image-size", "32", "--frames", "2", "--rounds", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert set(report["cases"]) == set(training.CASES) and set(report["ratios"]) == set(training.RATIOS)
    assert report["ratios"]["adapters_over_full_memory"]["median"] < 1
