"""Run trainings in sequence, each in forked processes that share one import of torch, which dominates test time.

    python forked_trainings.py '[{"processes": 2, "words": ["method/smga", "--out", "run"]}]'

The processes are forked before torch has started a thread, and told what torchrun would tell them. A job may say what
befalls one of them: ``{"signal": "SIGKILL", "rank": 1, "lines": 7, "log": "run/log.jsonl"}`` when the log, which it has
begun to write, has so many lines. As a launcher does, it kills what is left of a job some seconds after a process was
killed. Prints the exit codes of each job as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")

import dmgal.backbones
import dmgal.recipes.train
from dmgal.recipes.run.cli_errors import exit_code

SECONDS_TO_END = 10
"""Exit code of a process whose peer was killed."""


def run(processes: int, words: list[str], befalls: dict | None = None) -> list[int]:
    """Return exit codes by rank, negative if a signal ended the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, started = [], time.time()
    for rank in range(processes):
        child = os.fork()
        if not child:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os._exit(in_child(words, {key: str(value) for key, value in told.items()} if processes > 1 else {}))
        children.append(child)
    if befalls:
        wait_for_lines(Path(befalls["log"]), befalls["lines"], children, started)
        time.sleep(befalls.get("delay", 0.0))
        os.kill(children[befalls["rank"]], getattr(signal, befalls["signal"]))
        if befalls["signal"] == "SIGKILL":
            give_up_after(SECONDS_TO_END, children)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def wait_for_lines(log: Path, lines: int, children: list[int], started: float) -> None:
    """Wait until the log has this length or a process has ended."""
    while not (log.exists() and log.stat().st_mtime > started and log.read_bytes().count(b"\n") >= lines):
        if any(has_ended(child) for child in children):
            return
        time.sleep(0.005)


def give_up_after(seconds: float, children: list[int]) -> None:
    end = time.monotonic() + seconds
    while not all(has_ended(child) for child in children):
        if time.monotonic() > end:
            for child in children:
                os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.005)


def has_ended(child: int) -> bool:
    """Return True if the process has ended, leaving it for ``waitpid``."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def in_child(words: list[str], told: dict[str, str]) -> int:
    os.environ.update(told)
    try:
        return exit_code(dmgal.recipes.train.main, words)
    except SystemExit as ended:
        return int(str(ended.code))
    except BaseException:
        traceback.print_exc()
        return 3
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    results = [run(job["processes"], job["words"], job.get("befalls")) for job in json.loads(sys.argv[1])]
    print(json.dumps(results))
