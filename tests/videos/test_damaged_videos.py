"""Tests that damaged files give frames or one error, without crashes, hangs, leaks or unbounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmgal.bench import fuzz
from dmgal.bench.fuzz import CLEAN, FAILURES, check, open_handles, search, write_sources

CORPUS = sorted((Path(__file__).parents[1] / "data" / "damaged_videos").iterdir())
QUICK_KINDS = ["H.264 closed GOPs", "H.264 open GOPs, mkv", "HEVC closed GOPs", "MPEG-4 B-frames, avi", "MPEG-1", "GIF"]


def assert_clean(findings: fuzz.Findings, files: int) -> None:
    assert not findings.failures
    assert findings.most_mib < 2048
    totals = findings.totals()
    assert sum(totals[name] for name in CLEAN) == files and not any(totals[name] for name in FAILURES)


@pytest.mark.slow
def test_damaged_files_give_frames_or_one_error(tmp_path):
    findings = search(write_sources(tmp_path / "whole", QUICK_KINDS), 0, 150)
    assert_clean(findings, 150)
    assert all(findings.totals()[name] for name in CLEAN)
    assert {"frames lzma.zip", "frames bzip2.zip", "frames JPEG", "frames PNG"} < set(findings.outcomes)


@pytest.mark.slow
def test_many_damaged_files_give_frames_or_one_error(tmp_path):
    command = [sys.executable, "-m", "dmgal.bench.fuzz", "--files", "4000", "--out", str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    outcomes = json.loads((tmp_path / "fuzz.json").read_text())["outcomes"]
    assert sum(outcomes[name] for name in CLEAN) == 4000


@pytest.mark.slow
def test_damaged_real_files_give_frames_or_one_error(test_data):
    assert_clean(search(test_data / "videos" / "decoder_cases", 0, 500), 500)


MISBEHAVING = """
import os, sys, time
from pathlib import Path
from dmgal.bench import fuzz

def check(path):
    seed = int(path.stem)
    if seed == 1:
        os.abort()
    if seed == 2:
        time.sleep(1000)
    if seed == 3:
        raise KeyError("escaped")
    if seed == 4:
        os.open(path, os.O_RDONLY)
        raise AssertionError("a handle leaked")
    return "read"

fuzz.check = check
fuzz.main()
"""


@pytest.mark.slow
def test_fuzzer_detects_and_names_failures(tmp_path, monkeypatch):
    (tmp_path / "misbehaving.py").write_text(MISBEHAVING)
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "a.mp4").write_bytes(bytes(100))
    popen = subprocess.Popen

    def start(command, **options):
        return popen([command[0], str(tmp_path / "misbehaving.py"), *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    findings = search(tmp_path / "sources", 0, 6, seconds_per_file=1.0)
    assert findings.totals() == {"read": 2, "begins": 0, "refused": 0, **dict.fromkeys(FAILURES, 1)}
    assert [failure["seed"] for failure in findings.failures] == [1, 2, 3, 4]
    assert "KeyError" in str(findings.failures[2]["what"])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_regression_corpus_has_expected_outcomes(path):
    """Check files found by the fuzzer, each named after its expected outcome."""
    assert check(path) == path.stem.partition("_")[0]


def test_open_handles_of_a_file_or_folder_are_found(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    with open(frames / "0.png", "wb") as frame:
        assert open_handles(frames) == open_handles(frames / "0.png") == [frame.name]
        assert not open_handles(tmp_path / "fra")
    assert not open_handles(frames)


def test_regression_corpus_is_complete():
    assert {path.stem.partition("_")[0] for path in CORPUS} == set(CLEAN)
    assert len(CORPUS) >= 19
