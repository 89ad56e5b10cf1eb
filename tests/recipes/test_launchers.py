"""Recipe under every launcher, with equal losses on one and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from trainings import losses

from dmgal.cli import main

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-m"]
LAUNCHERS = {
    "accelerate script": [*PYTHON, "accelerate.commands.launch", "--cpu", "recipes/train.py"],
}
SLOW_LAUNCHERS = {
    "command": [*PYTHON, "dmgal", "train"],
    "module": [*PYTHON, "dmgal.recipes.train"],
    "accelerate module": [*PYTHON, "accelerate.commands.launch", "--cpu", "-m", "dmgal.recipes.train"],
}


def torchrun(processes: int) -> list[str]:
    port = str(forked.free_port())
    launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    return [*PYTHON, *launcher, "-m", "dmgal.recipes.train"]


def launched(launcher: list[str], words: list[str], out: Path) -> tuple[list[dict], str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, *words, "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()], result.stderr


@pytest.mark.parametrize("name", [*LAUNCHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_LAUNCHERS)])
def test_every_launcher_runs_the_recipe(name, tmp_path, data_flags):
    words = ["method/dmgal_adapter", *data_flags, "--train.steps", "1"]
    entries, printed = launched({**LAUNCHERS, **SLOW_LAUNCHERS}[name], words, tmp_path / "run")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1]
    assert "1 process(es) on cpu, float32, 1 task(s) a step" in printed


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, data_flags):
    """Full fine-tuning by torchrun without a CPU option, in float64, batch norms frozen."""
    words = ["method/dmgal_ft", *data_flags, "--train.precision", "float64", "--train.steps", "3"]
    words += ["--train.tasks-per-step", "2"]
    assert main(["train", *words, "--out", str(tmp_path / "one")]) == 0
    two, printed = launched(torchrun(2), words, tmp_path / "two")
    assert "2 process(es) on cpu" in printed
    expected = losses(tmp_path / "one")
    assert len(expected) == 3 == len(set(expected))
    assert [entry["loss"] for entry in two if "loss" in entry] == pytest.approx(expected, rel=0, abs=1e-9)


def test_tasks_not_divisible_by_processes_raise(tmp_path, data_flags):
    words = ["method/smga", *data_flags, "--train.steps", "1", "--train.tasks-per-step", "1"]
    result = forked.run(["-m", "dmgal.recipes.train", *words, "--out", str(tmp_path / "run")], processes=2)
    assert result.returncode == 2
    assert "a multiple of the number of processes" in result.stderr
    assert not (tmp_path / "run").exists()
