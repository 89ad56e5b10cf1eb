"""Training on two processes under thirty random SIGKILLs: a bit-identical result and no orphans.

The victim is a process that trains, one that loads its data, or their launcher; the moment is anywhere from the first
import to the last checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainings import assert_same_bits, log

KILLS = 30
STEPS = 100
SECONDS_TO_END = 120
FLAGS = [
    *("--train.tasks-per-step", "2", "--train.steps", str(STEPS), "--train.checkpoint-every", "2"),
    *("--train.validate-every", "5", "--train.ema", "0.9", "--data.num-workers", "1"),
]


def command(out: Path, data_flags: list[str]) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    words = ["-m", "dmgal.recipes.train", "method/dmgal_adapter", *data_flags, *FLAGS, "--out", str(out), "--resume"]
    return [sys.executable, *launcher, *words]


def started(out: Path, data_flags: list[str], mark: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DMGAL_CHAOS": mark}
    with (out.parent / "printed.txt").open("ab") as file:
        return subprocess.Popen(command(out, data_flags), env=environment, stdout=file, stderr=file)


def marked(mark: str) -> list[int]:
    """Return living processes with a mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and f"DMGAL_CHAOS={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except (OSError, PermissionError):
            continue
    return found


def is_training(process: int) -> bool:
    """Return True for training processes and their data workers. The launcher has no rank."""
    try:
        return b"RANK=" in (Path("/proc") / str(process) / "environ").read_bytes()
    except OSError:
        return False


def wait_until_all_ended(mark: str, launcher: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS_TO_END
    while marked(mark):
        launcher.poll()
        assert time.monotonic() < end, f"orphans: {marked(mark)}"
        time.sleep(0.05)
    launcher.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_thirty_kills_are_bit_identical(tmp_path, data_flags):
    draw = random.Random(0)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert started(whole, data_flags, "whole").wait() == 0, (tmp_path / "printed.txt").read_text()[-3000:]
    entries, kills, victims = len(log(whole)), 0, set()
    for attempt in range(10 * KILLS):
        mark = f"{os.getpid()}.{attempt}"
        launcher = started(out, data_flags, mark)
        if kills < KILLS:
            wait_for_a_random_moment(draw, out / "log.jsonl", entries, launcher)
            processes = [process for process in marked(mark) if process == launcher.pid or is_training(process)]
            if processes and launcher.poll() is None:
                victim = draw.choice(processes)
                victims.add(victim == launcher.pid)
                os.kill(victim, signal.SIGKILL)
                kills += 1
        else:
            assert launcher.wait() == 0, (tmp_path / "printed.txt").read_text()[-3000:]
        wait_until_all_ended(mark, launcher)
        if kills == KILLS and launcher.returncode == 0:
            break
    assert kills == KILLS and victims == {True, False}
    assert_same_bits(whole, out)


def wait_for_a_random_moment(draw: random.Random, path: Path, entries: int, launcher: subprocess.Popen[bytes]) -> None:
    """Wait for 1-4 more log lines but not until the end, or kill during the start in one of ten cases."""
    seconds, now = draw.uniform(0, 0.2), length(path)
    wanted = 0 if draw.random() < 0.1 else min(now + draw.randint(1, 4), entries - 1)
    while wanted and launcher.poll() is None:
        shorter = length(path) < now  # the log was rewound, so training has started
        if shorter:
            now, wanted = length(path), min(length(path) + draw.randint(1, 4), entries - 1)
        if length(path) >= wanted > now:
            break
        time.sleep(0.01)
    time.sleep(seconds if wanted else 10 * seconds)


def length(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
