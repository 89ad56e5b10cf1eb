"""Data workers obey only their training process, and never outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader

from dmgal.recipes.run.distributed import ignore_in_worker

LEFTOVER_WORKERS = """
import multiprocessing.util as util
before = len(util._finalizer_registry)
from torch.utils.data import DataLoader
from dmgal.recipes.run.distributed import ignore_in_worker
from dmgal.recipes.training.signals import StopSignal
print(len(util._finalizer_registry) - before)
with StopSignal():
    batches = iter(DataLoader(range(100), num_workers=2, worker_init_fn=ignore_in_worker))
    print(len(next(batches)))
cycle = [batches]
cycle.append(cycle)  # a reference cycle, as in a traceback
"""


@pytest.mark.slow
def test_python_exits_although_references_keep_workers_alive():
    """The import installs no exit hook."""
    done = subprocess.run(
        [sys.executable, "-c", LEFTOVER_WORKERS], timeout=120, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n1\n"), done.stderr


def test_worker_ignores_sigterm_and_sigusr1():
    batches = iter(DataLoader(range(6), num_workers=1, worker_init_fn=ignore_in_worker))
    assert next(batches).item() == 0
    (worker,) = batches._workers  # type: ignore[attr-defined]
    for number in ("TERM", "USR1"):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert [batch.item() for batch in batches] == [1, 2, 3, 4, 5]
    assert os.getpid() != worker.pid and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
