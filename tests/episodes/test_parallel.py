"""Processes that work for others: what they start with, and what they never hear of."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial

import pytest

from dmgal.episodes.parallel import completed, deaf_to_interrupts

ASK = partial(signal.pthread_sigmask, signal.SIG_BLOCK)  # blocks nothing more, tells what is blocked


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_is_for_the_first_process_alone() -> None:
    """Ctrl-C goes to the whole group of processes; workers must not see it, even while they start."""
    masks = list(completed(ASK, [()] * 4, 2))
    assert len(masks) == 4 and all(signal.SIGINT in mask for mask in masks)
    assert signal.SIGINT not in ASK(())


def test_an_interruption_meanwhile_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with deaf_to_interrupts():
            signal.raise_signal(signal.SIGINT)
            reached = True
    assert reached
