"""The real ResNet-50 on real clips: every method that the papers run on it trains and is evaluated without a warning.

Images have 64 pixels here instead of 224, for time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

METHODS = [
    "bi_mhm", "dmgal_ft", "frame_aligned", "hyrsm", "m2acl", "molo", "otam", "prototype", "sact", "strm", "team", "trx",
]  # fmt: skip


@pytest.fixture(scope="module")
def resnet50(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as they are, with a preprocessor that asks for smaller images."""
    folder = tmp_path_factory.mktemp("resnet50")
    for file in (test_data / "weights" / "resnet50-imagenet").iterdir():
        if file.name == "preprocessor_config.json":
            told = json.loads(file.read_text()) | {"size": {"shortest_edge": 64}}
            (folder / file.name).write_text(json.dumps(told))
        else:
            (folder / file.name).symlink_to(file)
    return folder


def dmgal(*words: object) -> list[str]:
    """Return standard output and error of a command."""
    command = [sys.executable, "-m", "dmgal", *map(str, words)]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3600, check=False
    )
    assert result.returncode == 0, result.stdout
    return result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_and_an_evaluation(method: str, resnet50: Path, test_data: Path, tmp_path: Path) -> None:
    run = tmp_path / method
    lines = dmgal(
        *("train", f"method/{method}", "data/ssv2_small", "--data.root", test_data / "videos" / "ssv2_mini"),
        *(
            "--backbone.name",
            resnet50,
            "--train.steps",
            20,
            "--train.tasks-per-step",
            1,
            "--queries",
            1,
            "--train.validation-episodes",
            20,
        ),
        *("--data.num-workers", min(2, os.cpu_count() or 1), "--quiet", "--out", run),
    )
    lines += dmgal("evaluate", run, "--episodes", 100, "--quiet")
    print("\n".join(lines))
    assert not [line for line in lines if "warn" in line.lower() or "Loading weights" in line]
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 20 and all(map(math.isfinite, losses))
