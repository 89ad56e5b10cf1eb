"""Worker processes and SIGINT."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from dmgal.parallel import completed, deaf_to_interrupts

ASK = partial(signal.pthread_sigmask, signal.SIG_BLOCK)  # with (), returns the blocked signals


@pytest.fixture(autouse=True)
def default_sigint_handler() -> Iterator[None]:
    """Python's handler of Ctrl-C, which a shell disables for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_workers_block_sigint() -> None:
    """Ctrl-C reaches the whole process group, but workers must not see it, even while they start."""
    masks = list(completed(ASK, [()] * 4, 2))
    assert len(masks) == 4 and all(signal.SIGINT in mask for mask in masks)
    assert signal.SIGINT not in ASK(())


def test_blocked_sigint_is_delivered_afterward() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with deaf_to_interrupts():
            signal.raise_signal(signal.SIGINT)
            reached = True
    assert reached


def test_sigint_received_by_another_thread_is_delivered_afterward() -> None:
    """The bar of a command has a thread that does not block the signal."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    reached = False
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
            with deaf_to_interrupts():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)  # the handler would run here
                reached = True
    finally:
        done.set()
        thread.join()
    assert reached
