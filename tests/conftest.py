"""What every test shares: the folder of test data, few threads, and a guard that no test talks to the network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any library reads them; processes that tests start inherit them.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import dmgal.backbones.torchvision_cpu  # noqa: F401  (before a test imports open_clip, transformers or peft)

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

    torch.set_num_threads(2)


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
