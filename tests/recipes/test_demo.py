"""The demo through the command line, from making the videos to the page; and again, when nothing is left to do."""

from __future__ import annotations

import json

import pytest

from dmgal.cli import main

METHODS = ["frozen", "smga", "dmgal_adapter", "dmgal_ft"]


@pytest.mark.slow
def test_demo_runs_and_resumes(tmp_path, capfd):
    words = ["demo", "--out", str(tmp_path), "--seed", "101", "--steps", "2", "--episodes", "40", "--quiet"]
    assert main(words) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert [row["run"] for row in result["rows"]] == METHODS
    assert len({row["results"]["accuracy"]["episodes_hash"] for row in result["rows"]}) == 1
    page = (tmp_path / "index.html").read_text()
    assert page.count('id="mark') == len(METHODS) and "Motions and their reversals" in page
    printed = capfd.readouterr().out
    assert "1/3 videos" in printed and "3/3 comparing" in printed and "dmgal_ft" in printed
    logs = {method: (tmp_path / "runs" / method / "log.jsonl").read_text().count("loss") for method in METHODS}
    assert main(words) == 0
    assert logs == {method: (tmp_path / "runs" / method / "log.jsonl").read_text().count("loss") for method in METHODS}
    again = json.loads((tmp_path / "results.json").read_text())
    assert [row["results"] for row in again["rows"]] == [row["results"] for row in result["rows"]]
