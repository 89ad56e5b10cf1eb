"""Recipe under every launcher, with equal losses on one and two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-m"]
LAUNCHERS = {
    "module": [*PYTHON, "dmgal.recipes.train"],
    "command": [*PYTHON, "dmgal", "train"],
    "accelerate script": [*PYTHON, "accelerate.commands.launch", "--cpu", "recipes/train.py"],
    "accelerate module": [*PYTHON, "accelerate.commands.launch", "--cpu", "-m", "dmgal.recipes.train"],
}


def torchrun(processes: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        *PYTHON,
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        str(port),
        "-m",
        "dmgal.recipes.train",
    ]


def launched(launcher: list[str], words: list[str], out: Path) -> tuple[list[dict], str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, *words, "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()], result.stderr


@pytest.mark.parametrize("name", list(LAUNCHERS))
def test_every_launcher_runs_the_recipe(name, tmp_path, data_flags):
    words = ["method/dmgal_adapter", *data_flags, "--train.steps", "1"]
    entries, printed = launched(LAUNCHERS[name], words, tmp_path / "run")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1]
    assert "1 process(es) on cpu, float32, 1 task(s) a step" in printed


def test_two_processes_give_the_losses_of_one(tmp_path, data_flags):
    """Full fine-tuning by torchrun without a CPU option: ten steps in float64, batch norms frozen."""
    words = [
        "method/dmgal_ft",
        *data_flags,
        "--train.precision",
        "float64",
        "--train.steps",
        "10",
        "--train.tasks-per-step",
        "2",
    ]
    one, _ = launched(LAUNCHERS["module"], words, tmp_path / "one")
    two, printed = launched(torchrun(2), words, tmp_path / "two")
    assert "2 process(es) on cpu" in printed
    losses = [[entry["loss"] for entry in entries if "loss" in entry] for entries in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 10
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-9)
    assert len(set(losses[0])) == 10


def test_tasks_not_divisible_by_processes_raise(tmp_path, data_flags):
    words = ["method/smga", *data_flags, "--train.steps", "1", "--train.tasks-per-step", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*torchrun(2), *words, "--out", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert result.returncode != 0
    assert "a multiple of the number of processes" in result.stderr
    assert not (tmp_path / "run").exists()
