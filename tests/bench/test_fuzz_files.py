"""A slice of the search for small files that cause tracebacks, hangs or gigabytes of memory; all of it is slow."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmgal.bench import fuzz_files

FILES, SECONDS = 40, 5


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    return fuzz_files.write_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.slow
def test_changed_files_give_results_or_clean_errors(sources, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fuzz_files, "_SOURCES", [sources])
    gc.freeze()  # a training collects all garbage at its end
    outcomes = []
    for seed in range(FILES):
        here = tmp_path / str(seed)
        here.mkdir()
        _, read = fuzz_files.damage(seed, here)
        start = time.monotonic()
        outcomes.append(read())  # raises anything but a clean error
        assert time.monotonic() - start < SECONDS
    gc.unfreeze()
    assert set(outcomes) == {"read", "refused"}


@pytest.mark.slow
def test_ten_thousand_changed_files(sources, tmp_path) -> None:
    words = ["--sources", str(sources), "--out", str(tmp_path / "fuzz.json")]
    done = subprocess.run([sys.executable, "-m", fuzz_files.MODULE, *words], capture_output=True, text=True)
    report = json.loads((tmp_path / "fuzz.json").read_text())
    assert report["failures"] == [] and done.returncode == 0 and sum(report["outcomes"].values()) == 10_000
