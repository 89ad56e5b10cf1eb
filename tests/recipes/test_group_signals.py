"""Signals to a process group, as sent by torchrun and many schedulers, concern the training and not its workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import forked
import pytest
import torch

from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.training.signals import Preempted, StopSignal

SLOW_VALIDATION = """
import sys
from pathlib import Path

import torch

import dmgal.episodes.evaluation.accuracy as evaluation
import dmgal.recipes.run.distributed as sharding
from dmgal.cli import main

encode, begun, numbers = evaluation.states_to_keep, Path(sys.argv.pop(1)), torch.ones(3000, 3000)

def slowly(recognizer, clips):
    begun.touch()
    numbers @ numbers  # no Python signal handler runs meanwhile, but workers may end
    return encode(recognizer, clips)

evaluation.states_to_keep, sharding.CHUNK = slowly, 1
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def killed_at_the_end(training: forked.Program) -> Iterator[None]:
    """Kill what is left of the group, which includes the workers that load data."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(training.pids[0], signal.SIGKILL)
        training.wait()


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups")
def test_sigterm_to_group_during_validation_exits_75(tmp_path, data_flags):
    flags = [flag for flag in data_flags if flag != "--data.keep-in-memory"]
    steps = ["--train.steps", "2", "--train.validate-every", "1", "--data.num-workers", "2"]
    (tmp_path / "slow.py").write_text(SLOW_VALIDATION)
    words = ["train", "method/smga", *flags, *steps, "--out", str(tmp_path / "run")]
    training = forked.start([str(tmp_path / "slow.py"), str(tmp_path / "begun"), *words])
    with killed_at_the_end(training):
        while not (tmp_path / "begun").exists():
            assert training.poll() == [None], training.stderr[-3000:]
            time.sleep(0.01)
        os.killpg(training.pids[0], signal.SIGTERM)
        assert training.wait() == [75], training.stderr[-3000:]
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest().progress["progress"]["step"] == 1


class KilledWithItsParent(torch.utils.data.Dataset):
    """A worker that a signal to the group reaches before it can ignore it."""

    def __getitem__(self, index):
        os.kill(os.getppid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGKILL)

    def __len__(self):
        return 2


def test_a_worker_killed_by_the_same_signal_is_no_error():
    loader = torch.utils.data.DataLoader(KilledWithItsParent(), num_workers=1)
    with StopSignal() as stop, pytest.raises(Preempted), stop.noting():
        next(iter(loader))


@pytest.mark.parametrize(("requested", "raised"), [("SIGTERM", Preempted), (None, RuntimeError)])
def test_a_worker_lost_while_a_signal_ends_the_process(requested, raised):
    with StopSignal() as stop, pytest.raises(raised), stop.ending():
        stop.requested = requested
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")


BROKEN = """
import sys
from dmgal.cli import main
from dmgal.recipes.training.trainer import Trainer

def broken(self, episodes):
    raise RuntimeError("out of memory")

Trainer._train_step = broken
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_error_in_training_with_workers_ends_the_process(tmp_path, data_flags):
    (tmp_path / "broken.py").write_text(BROKEN)
    words = ["train", "method/smga", *data_flags, "--train.steps", "200", "--data.num-workers", "2"]
    training = forked.start([str(tmp_path / "broken.py"), *words, "--out", str(tmp_path / "run")])
    with killed_at_the_end(training):
        assert training.wait() == [1]
    assert "out of memory" in training.stderr
