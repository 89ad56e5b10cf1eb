"""SIGTERM and SIGUSR1 end a training between two steps, with exit code 75."""

from __future__ import annotations

import os
import signal

import pytest

from dmgal.recipes.training.signals import PREEMPTED, Preempted, StopSignal


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signal_is_recorded_during_work(name):
    before = signal.getsignal(getattr(signal, name))
    with StopSignal() as stop:
        with stop.noting():
            os.kill(os.getpid(), getattr(signal, name))
            assert stop.requested == name
            with pytest.raises(Preempted) as ended, stop.ending():
                pytest.fail("a signal that was noted before does not end")
        assert ended.value.code == PREEMPTED == 75 and ended.value.name == name
    assert signal.getsignal(getattr(signal, name)) == before


def test_signal_outside_work_ends_at_once():
    with pytest.raises(SystemExit) as ended, StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal was not handled")
    assert ended.value.code == 75
