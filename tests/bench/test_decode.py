"""Decoding benchmark, and completeness of its published table and the numbers in the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmgal.bench import decode
from dmgal.bench.barcode_clips import KINDS


@pytest.mark.slow
def test_speed_is_measured_on_frames_that_are_right(tmp_path):
    report = decode.measure_speed(tmp_path, {"ours": decode.read_ours}, rounds=2, contents=1)
    assert set(report) == set(decode.GOPS)
    for measured in report.values():
        times = measured["cpu_ms_per_clip"]
        assert set(times) == {"ours", "plain", "limit"}
        assert all(time["median"] > 0 for time in times.values())
    json.dumps(report)


def test_wrong_frames_are_counted(tmp_path):
    def off_by_one(path: Path, indices):
        return decode.read_plainly(path, [max(index - 1, 0) for index in indices])

    def fails(path: Path, indices):
        raise RuntimeError

    kinds = {name: KINDS[name] for name in ("H.264 open GOPs", "H.264 edit list")}
    table = decode.table_of_wrong_frames(tmp_path, {"ours": decode.read_ours, "late": off_by_one, "no": fails}, kinds)
    for row in table.values():
        assert (
            row["ours"].items()
            >= {"uniform": 0, "random": 0, "reverse": 0, "bit_equal_to_plain_decoding": True}.items()
        )
        assert row["late"]["uniform"] == 8 and row["late"]["reverse"] == row["late"]["of"]["reverse"] - 1
        assert row["no"] == {"error": "RuntimeError"}


def test_the_published_table_is_whole_and_without_a_wrong_frame():
    report = json.loads(decode.OUT.read_text())
    assert set(report["wrong_frames"]) == set(KINDS)
    for row in report["wrong_frames"].values():
        assert row["ours"]["uniform"] == row["ours"]["random"] == row["ours"]["reverse"] == 0
        assert row["ours"]["bit_equal_to_plain_decoding"]
    for measured in report["speed"].values():
        assert measured["times_as_long_as_ours"]["decord"]["interval_95"][0] >= 1.4
