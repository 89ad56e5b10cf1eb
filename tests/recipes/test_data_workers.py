"""Processes that load data hear their own training process, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from torch.utils.data import DataLoader

from dmgal.recipes.training.signals import ignore_in_worker

LEFT_BEHIND = """
from torch.utils.data import DataLoader
from dmgal.recipes.training.signals import ignore_in_worker
batches = iter(DataLoader(range(100), num_workers=2, worker_init_fn=ignore_in_worker))
print(len(next(batches)))
kept = [batches]
kept.append(kept)  # a circle, as a traceback makes one
"""


def test_python_ends_although_somebody_holds_on_to_the_workers():
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], timeout=120, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_signal_of_somebody_else_is_not_heard():
    batches = iter(DataLoader(range(6), num_workers=1, worker_init_fn=ignore_in_worker))
    assert next(batches).item() == 0
    (worker,) = batches._workers  # type: ignore[attr-defined]
    for number in ("TERM", "USR1"):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert [batch.item() for batch in batches] == [1, 2, 3, 4, 5]
    assert os.getpid() != worker.pid and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
