"""Set-up for every test: the folder of test data, few threads, and a guard against network access."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before any library reads them; processes that tests start inherit them.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))

pytest_plugins = ["video_fixtures"]
hypothesis.settings.register_profile("dmgal", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("dmgal")
ROOT = Path(__file__).resolve().parents[1]
EXTENDED_BY_IMPORTS = ("PATH", "LD_LIBRARY_PATH")  # of decord and of OpenCV
SET_BY_LIBRARIES = ("KMP_", "PYTEST_", "TORCHINDUCTOR_", "_TORCHINDUCTOR_")
_LOCAL = {None, "", b"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname()}


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of weights, golden tensors, videos and splits that are too large for the repository."""
    folder = os.environ.get("DMGAL_TEST_DATA")
    if not folder:
        pytest.skip("needs the environment variable DMGAL_TEST_DATA: the folder with golden, splits, videos, weights")
    if not Path(folder).is_dir():
        pytest.fail(f"DMGAL_TEST_DATA is not a folder: {folder}")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Small tensors gain nothing from many threads, and results stay comparable between machines."""
    import torch

    torch.set_num_threads(NUM_THREADS)


def _state() -> dict[str, Any]:
    """Return what a test must leave as it was."""
    import torch

    return {
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
        "processes": sorted(child.name for child in multiprocessing.active_children() if not child.daemon),
        "working directory": os.getcwd(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name not in EXTENDED_BY_IMPORTS and not name.startswith(SET_BY_LIBRARIES)
        },
        "files in the checkout": sorted(name for name in os.listdir(ROOT) if not name.startswith(".")),
        "log handlers": list(logging.getLogger().handlers) + list(logging.getLogger("dmgal").handlers),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs. Threads of an earlier test that ended meanwhile do not count."""
    new = {**after, "threads": after["threads"] | before["threads"]}
    return {name: (before[name], after[name]) for name in before if before[name] != new[name]}


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Seed every test, and fail the test that leaves threads, processes, files or global state behind."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = _state()
    yield
    after = _state()
    leaks = _changes(before, after)
    if leaks:
        gc.collect()  # a data loader ends its workers when it is collected
        for child in multiprocessing.active_children():
            child.join(timeout=10)
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join(timeout=2)  # transformers ends the threads that load weights without waiting for them
        leaks = _changes(before, _state())
    if leaks:
        pytest.fail(f"the test leaks (before, after): {leaks}")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail the test that connects to, or looks up, another machine. Sockets within this machine work."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method)))
        patch.setattr(socket, "getaddrinfo", _guarded_lookup(socket.getaddrinfo))
        yield


def _guarded(method):
    def guarded(self, *arguments):
        address = arguments[-1]  # the last argument of all three
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_unless_local(address[0])
        return method(self, *arguments)

    return guarded


def _guarded_lookup(lookup):
    def guarded(host, *arguments, **options):
        _refuse_unless_local(host)
        return lookup(host, *arguments, **options)

    return guarded


def _refuse_unless_local(host) -> None:
    if host not in _LOCAL:
        pytest.fail(f"a test must not use the network, but this one wanted {host!r}")  # not an OSError: nobody retries
