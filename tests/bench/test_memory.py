"""Cases of bench/memory.py, and arithmetic of the estimated table."""

from __future__ import annotations

import pytest
from small_models import small_recognizer

from dmgal.bench import memory


@pytest.mark.slow
def test_every_case_is_measured_and_has_the_plain_gradients(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "recognizer", small_recognizer)
    options = memory.Options(shots=(2,), shares=(0.0, 0.3), image_size=48, threads=1)
    (cases,) = memory.tasks(options)
    assert [(case.way, case.share) for case in cases] == [
        ("plain", None),
        ("checkpointed", None),
        ("two passes", 0.0),
        ("two passes", 0.3),
    ]
    results = []
    for case in cases:
        budget = memory._budget(case, results, options)
        assert (budget is None) == (not case.share)
        results.append(memory.run_case(case, options, tmp_path, budget))
    plain, *others = (result["peak_extra_tensor_mb"] for result in results)
    assert all(0 < peak < 0.7 * plain for peak in others)
    for case in cases[1:]:
        difference = memory.gradient_difference(memory._file(tmp_path, case), memory._file(tmp_path, cases[0]))
        assert difference <= 1e-5


def test_medians_over_rounds():
    rounds = [{"seconds": second, "peak_extra_mb": None} for second in (3.0, 1.0, 2.0)]
    assert memory._medians(rounds) == {"seconds": 2.0, "peak_extra_mb": None, "all_seconds": [3.0, 1.0, 2.0]}
    assert memory._medians([*rounds, {"out_of_memory": True}]) == {"out_of_memory": True}


@pytest.mark.slow
def test_the_reasoned_table(monkeypatch):
    monkeypatch.setattr(memory, "TABLE_IMAGE_SIZE", 48)
    monkeypatch.setattr(memory, "recognizer", small_recognizer)
    rows = memory.estimated_table()
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        gb, sizes = row["gb"], row["mb"]["of_a_video"]
        assert 0 < sizes["kept"] < sizes["checkpointed"] < sizes["graph"]
        assert gb["two_passes_chunk_1"] <= gb["checkpointed"] <= gb["plain"]
        assert row["fits_in_24_gb"] == {"plain": True, "checkpointed": True}  # a tiny model
        assert row["largest_chunk_in_24_gb"] == row["videos"]


def test_a_task_that_does_not_fit_is_said_to(monkeypatch):
    sizes = {"graph": 1_000_000_000, "checkpointed": 100_000_000, "kept": 50_000_000}
    row = memory._row(sizes, comparison=0, fixed=0, videos=50)
    assert row["gb"] == {"plain": 50.8, "checkpointed": 5.8, "two_passes_chunk_1": 4.3, "two_passes_chunk_5": 8.3}
    assert row["fits_in_24_gb"] == {"plain": False, "checkpointed": True}
    assert row["largest_chunk_in_24_gb"] == 20  # (24 - 0.8 - 50 * 0.05) / 1, rounded down
