"""Dry run of bench/gpu.py on a CPU."""

from __future__ import annotations

import json

import pytest
from small_models import small_recognizer

from dmgal.bench import gpu

DRY = ["--device", "cpu", "--frames", "2", "--videos", "30", "--episodes", "20", "--rounds", "1"]


def report_of(tmp_path, *flags: str) -> dict:
    out = tmp_path / "gpu.json"
    gpu.main([*DRY, *flags, "--out", str(out)])
    return json.loads(out.read_text())


def check(report: dict) -> None:
    for shots in ("1_shot", "5_shot"):
        step, evaluation = report["training_step"][shots], report["evaluation"][shots]
        assert step["milliseconds"]["median"] > step["floor_milliseconds"] >= 0
        assert 0 < step["teraflop_per_step"] < 1 and step["peak_memory_mb"] is None
        assert evaluation["seconds"] >= evaluation["encoding_seconds"] > 0
    assert report["device"] == "cpu: a dry run"
    assert (
        2.5
        < report["training_step"]["5_shot"]["teraflop_per_step"]
        / report["training_step"]["1_shot"]["teraflop_per_step"]
        < 3.5
    )  # 30 videos and 10


@pytest.mark.slow
def test_a_dry_run(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "recognizer", small_recognizer)
    check(report_of(tmp_path, "--image-size", "48"))


@pytest.mark.slow
def test_a_dry_run_on_vit_b_16(tmp_path):
    check(report_of(tmp_path, "--image-size", "32"))
