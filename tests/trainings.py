"""Helpers of multi-process tests: run trainings and read their results."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import forked
import torch
from safetensors.torch import load_file

SECONDS_TO_END = 10
"""Time that a launcher gives the processes whose peer was killed."""


def trained_together(*jobs: dict, **environment: str) -> tuple[list[list[int]], str]:
    """Run trainings one after the other. Return the exit codes of each by rank, and their stderr.

    A job has a number of ``processes``, and ``words``, the arguments of ``dmgal train``. It may say what befalls one of
    the processes: ``{"signal": "SIGKILL", "rank": 1, "lines": 7, "log": "run/log.jsonl"}`` when the log has so many
    lines. As a launcher does, this kills what is left of a job some seconds after a process was killed.
    """
    codes, errors = [], ""
    for job in jobs:
        started = time.time()
        words = ["-m", "dmgal.recipes.train", *job["words"]]
        program = forked.start(words, job["processes"], ACCELERATE_USE_CPU="true", **environment)
        if "befalls" in job:
            _befall(program, started, **job["befalls"])
        codes.append(program.wait())
        errors += program.stderr
    return codes, errors


def _befall(program: forked.Program, started: float, signal: str, rank: int, lines: int, log: str, delay=0.0) -> None:
    _wait_for_lines(Path(log), lines, program, started)
    time.sleep(delay)
    if program.poll()[rank] is None:
        os.kill(program.pids[rank], SIGNALS[signal])
    if signal == "SIGKILL":
        end = time.monotonic() + SECONDS_TO_END
        while None in program.poll() and time.monotonic() < end:
            time.sleep(0.01)
        program.kill()


SIGNALS = signal.Signals.__members__


def _wait_for_lines(log: Path, lines: int, program: forked.Program, started: float) -> None:
    """Wait until the log has this length or a process has ended."""
    while not (log.exists() and log.stat().st_mtime > started and log.read_bytes().count(b"\n") >= lines):
        if program.poll() != [None] * len(program.pids):
            return
        time.sleep(0.005)


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in log(run) if "loss" in entry]


def validations(run: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["validation_accuracy"]) for entry in log(run) if "validation_accuracy" in entry]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the newest checkpoint and of the best weights, by file and name."""
    files = [*sorted((run / "checkpoints").iterdir())[-1].glob("*.safetensors"), *run.glob("adapter/**/*.safetensors")]
    assert len(files) >= 3
    return {
        f"{path.parent.name}/{path.name}:{name}": value for path in files for name, value in load_file(path).items()
    }


def assert_same_bits(one: Path, other: Path) -> None:
    """Check for equal weights, moments, best weights, losses and validations."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys() and len(first) > 20
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert losses(one) == losses(other) and validations(one) == validations(other)
