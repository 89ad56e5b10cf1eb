"""Launch configs, launchers, and warnings about fewer processes than requested."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from trainings import log, losses

import dmgal.recipes.training.launching as launching
from dmgal.cli import main
from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.layers import bundled_layers
from dmgal.recipes.training.launching import COUNTS, REQUESTED_PRECISION, is_launched, requested_processes

LAUNCH = Path(str(files("dmgal.recipes").joinpath("configs", "launch")))
CONFIGS = {
    "one_gpu": {"multi_gpu": False, "use_fsdp": False, "use_deepspeed": False, "num_processes": 1},
    "several_gpus": {"multi_gpu": True, "use_fsdp": False, "use_deepspeed": False, "num_processes": 2},
    "ddp": {"multi_gpu": True, "num_machines": 2, "num_processes": 8, "main_process_port": 29500},
    "fsdp": {"use_fsdp": True, "multi_gpu": False, "fsdp_version": 2, "fsdp_reshard_after_forward": True},
    "deepspeed_zero2": {"use_deepspeed": True, "use_fsdp": False, "zero_stage": 2, "num_processes": 2},
}


def test_launch_configs_are_listed_and_no_recipe_layers():
    assert {path.stem for path in LAUNCH.rglob("*.yaml")} == set(CONFIGS)
    assert not [name for name in bundled_layers() if name.startswith("launch")]


def test_layer_list_names_launch_configs(capsys):
    assert main(["train", "--list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "method/dmgal_adapter" in printed and printed[-1].endswith(str(LAUNCH))


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_parses_launch_config(name):
    path = LAUNCH / f"{name}.yaml"
    assert load_config_from_file(str(path)).num_processes == CONFIGS[name].get("num_processes", 2)
    words = ["--config_file", str(path), "-m", "dmgal.recipes.train"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert {key: getattr(parsed, key) for key in CONFIGS[name]} == CONFIGS[name]


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_launch_config_comments_start_with_limits_and_command(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert "(untested" in comments[0]
    assert f"launch/{path.name}" in "\n".join(comments)


@pytest.fixture
def environment(monkeypatch):
    """Set environment variables in the absence of all that launchers set."""
    for name in (*COUNTS, "MASTER_ADDR", REQUESTED_PRECISION, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize("name", COUNTS)
def test_requested_processes_of_a_launcher(environment, name):
    assert requested_processes() == 1
    environment(**{name: "4"})
    assert requested_processes() == 4


def test_address_without_count_means_several_processes(environment):
    environment(MASTER_ADDR="127.0.0.1")
    assert requested_processes() == 1
    environment(**{REQUESTED_PRECISION: "no"})
    assert requested_processes() == 2
    environment(WORLD_SIZE="1")
    assert requested_processes() == 1


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", REQUESTED_PRECISION])
def test_launched_process_knows_it_by_the_environment(environment, variable):
    assert not is_launched()
    environment(**{variable: "no"})
    assert is_launched()


@pytest.mark.parametrize(
    ("device", "processes", "flag", "on_cpu"),
    [
        (None, "1", "", False),
        (None, "2", "", True),
        ("mps", "1", "", False),
        ("mps", "2", "", True),  # only one process can use it
        ("cuda", "2", "", False),
        ("cuda", "2", "true", True),
    ],
)
def test_device_of_several_processes(monkeypatch, device, processes, flag, on_cpu):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag or "false")
    found = None if device is None else torch.device(device)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    assert launching._belongs_on_cpu() == on_cpu


@pytest.mark.parametrize(("requested", "warned"), [("bf16", True), ("no", False), ("float32", False)])
def test_ignored_launcher_precision_warns(environment, capsys, requested, warned):
    environment(**{REQUESTED_PRECISION: requested})
    launching.warn_of_launcher(SimpleNamespace(is_main_process=True, num_processes=1), Recipe())
    warning = "launcher requests precision bf16, the recipe float32. The recipe's is used"
    assert (warning in capsys.readouterr().err) == warned


@pytest.mark.parametrize(("started", "main", "warned"), [(1, True, True), (1, False, False), (2, True, False)])
def test_fewer_processes_than_requested_warn_on_the_main_process(environment, capsys, started, main, warned):
    environment(MASTER_ADDR="127.0.0.1", **{REQUESTED_PRECISION: "no"})
    launching.warn_of_launcher(SimpleNamespace(is_main_process=main, num_processes=started), Recipe())
    printed = capsys.readouterr().err
    assert ("warning: at least 2 processes were requested, 1 started" in printed) == warned
    assert ("torchrun --nproc_per_node 2" in printed) == warned


# ---- launchers ----


def launched(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=3600, check=False)


def accelerate_launch(name: str, words: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / f"{name}.yaml")]
    return launched([*launcher, "--main_process_port", "0", *flags, "-m", "dmgal.recipes.train", *words])


@pytest.mark.slow
def test_fsdp_on_two_cpus_equals_one_process(tmp_path, data_flags):
    """An FSDP run stops and resumes under DDP, because checkpoints hold full weights."""
    flags = ["--train.steps", "4", "--train.tasks-per-step", "2", "--train.checkpoint-every", "2"]
    flags += ["--train.validate-every", "2", "--train.ema", "0.9", "--train.precision", "float64"]
    words = ["method/dmgal_adapter", *data_flags, *flags, "--out"]
    one = launched([sys.executable, "-m", "dmgal.recipes.train", *words, str(tmp_path / "one")])
    assert one.returncode == 0, one.stderr[-3000:]
    two = accelerate_launch("fsdp", [*words, str(tmp_path / "two")])
    assert two.returncode == 0, two.stderr[-3000:]
    assert "2 process(es) on cpu with FSDP, float64, 2 task(s) a step of 8 videos" in two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-9)
    accuracies = [[e["validation_accuracy"] for e in log(tmp_path / n) if "half_width" in e] for n in ("one", "two")]
    assert accuracies[0] == accuracies[1] and len(accuracies[0]) == 2
    newest = tmp_path / "two" / "checkpoints" / "step_00000004"
    shutil.rmtree(newest)
    again = accelerate_launch("several_gpus", [*words, str(tmp_path / "two"), "--resume"])
    assert again.returncode == 0, again.stderr[-3000:]
    assert "resumed at step 2" in again.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-9)


@pytest.mark.slow
def test_fewer_processes_than_requested_warn(tmp_path, data_flags):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    words = ["method/smga", *data_flags, "--train.steps", "1", "--out", str(tmp_path / "run")]
    result = launched([*launcher, "-m", "dmgal.recipes.train", *words])
    assert result.returncode == 0, result.stderr[-3000:]
    assert "warning: at least 2 processes were requested, 1 started" in result.stderr
    assert "torchrun --nproc_per_node 2" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for a process in /proc")
def test_training_ends_with_its_launcher(tmp_path, data_flags):
    config = ["--config_file", str(LAUNCH / "one_gpu.yaml"), "-m", "dmgal.recipes.train"]
    words = ["method/smga", *data_flags, "--train.steps", "2000", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, *words]
    launcher = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while not (tmp_path / "run" / "log.jsonl").exists():
            assert launcher.poll() is None
            time.sleep(0.05)
        (training,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        launcher.terminate()
        launcher.wait()
        end = time.monotonic() + 60
        while Path(f"/proc/{training}").exists() and "zombie" not in Path(f"/proc/{training}/status").read_text():
            assert time.monotonic() < end, "the training goes on alone"
            time.sleep(0.05)
    finally:
        launcher.kill()
        launcher.wait()
        with suppress(ProcessLookupError, NameError):
            os.kill(int(training), signal.SIGKILL)
    assert 1 <= Checkpoints(tmp_path / "run" / "checkpoints").newest().progress["progress"]["step"] < 2000


STAND_INS = {
    # like srun: starts the tasks, forwards signals, exits with the highest code
    "srun": """#!{python}
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--kill")]
place = lambda rank: dict(os.environ, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
tasks = [subprocess.Popen(words, env=place(rank)) for rank in range(2)]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
""",
    "scontrol": """#!/bin/bash
case "$1 $2" in
  "show hostnames") echo 127.0.0.1 ;;
  "show job") echo "   JobState=$STATE Reason=None" ;;
  *) echo "$@" >> "$REQUEUED" ;;
esac
""",
}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_slurm_script_trains_on_two_tasks_and_requeues(tmp_path, data_flags, state):
    (tmp_path / "bin").mkdir()
    # python is a script, because a link would not find the packages of a virtual environment
    for name, text in {**STAND_INS, "python": '#!/bin/sh\nexec "{python}" "$@"\n'}.items():
        path = tmp_path / "bin" / name
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    flags = ["--train.steps", "200", "--train.tasks-per-step", "2", "--train.validate-every", "1000"]
    words = ["method/smga", *data_flags, *flags, "--out", str(tmp_path / "run")]
    told = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "OMP_NUM_THREADS": "1"}
    told |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "REQUEUED": str(tmp_path / "requeued"), "STATE": state}
    script = ["bash", str(LAUNCH / "slurm.sh"), *words]
    job = subprocess.Popen(script, env={**os.environ, **told}, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in job.stderr if "process(es)" in line)
        assert "2 process(es) on cpu" in line
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        while not (tmp_path / "run" / "log.jsonl").exists():
            assert job.poll() is None
        subprocess.run(["kill", "-USR1", *children], check=True)  # like --signal=USR1@90: to the step, not the script
        assert job.wait(timeout=600) == 75
    finally:
        job.kill()
        job.stderr.close()
    if state == "CANCELLED":
        assert not (tmp_path / "requeued").exists()
    else:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert re.fullmatch(r"step_0{5,}\d+", saved[0])
