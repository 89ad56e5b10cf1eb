"""Live recognition: the report of a short video."""

from __future__ import annotations

import json

import pytest

from dmgal.bench import live


@pytest.mark.slow
def test_report_has_windows_and_answers(tmp_path):
    live.main(["--seconds", "2.5", "--answers", "1", "--out", str(tmp_path / "live.json")])
    report = json.loads((tmp_path / "live.json").read_text())
    assert report["watch"]["windows"] >= 1
    assert report["page_seconds"]["answers"] == 1
