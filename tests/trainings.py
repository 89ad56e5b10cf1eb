"""Helpers of multi-process tests: start trainings and read their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

FORKED = Path(__file__).with_name("forked_trainings.py")


def trained_together(*jobs: dict, **environment: str) -> tuple[list[list[int]], str]:
    """Return the exit codes of each job of ``forked_trainings.py`` by rank, and their stderr."""
    command = [sys.executable, str(FORKED), json.dumps(jobs)]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=3600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in log(run) if "loss" in entry]


def validations(run: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["validation_accuracy"]) for entry in log(run) if "validation_accuracy" in entry]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the newest checkpoint and of the best weights, by file and name."""
    files = [*sorted((run / "checkpoints").iterdir())[-1].glob("*.safetensors"), *run.glob("adapter/*.safetensors")]
    assert len(files) >= 3
    return {f"{path.name}:{name}": value for path in files for name, value in load_file(path).items()}


def assert_same_bits(one: Path, other: Path) -> None:
    """Check for equal weights, moments, best weights, losses and validations."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys() and len(first) > 20
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert losses(one) == losses(other) and validations(one) == validations(other)
