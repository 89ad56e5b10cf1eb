"""The data loader works with little shared memory, few open files and without either."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dmgal import loader
from dmgal.errors import DmgalError
from dmgal.loader import Loader


class Clips(Dataset):
    """Clips of 1.2 MB, filled with their index."""

    def __len__(self):
        return 80

    def __getitem__(self, index):
        return torch.full((8, 3, 224, 224), index, dtype=torch.uint8)


class Tasks(Dataset):
    """Nested values of many types, as in an episode."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {
            "videos": torch.full((2, 3), index, dtype=torch.uint8),
            "half": [torch.tensor([1.5, index], dtype=torch.bfloat16)],
            "scalar": torch.tensor(index, dtype=torch.float64),
            "empty": torch.empty(0, 4),
            "flags": torch.tensor([True, False]),
            "strided": torch.arange(6).view(2, 3).T + index,
            "name": f"task {index}",
        }


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(loader, "little_shared_memory", lambda: "a test")
    loader._say.cache_clear()


def test_values_are_the_same_through_pipes(little_memory, caplog):
    caplog.set_level(logging.INFO)
    batches = list(Loader(Tasks(), collate_fn=list, num_workers=2))
    assert "a test: data workers send videos through pipes" in caplog.text
    for index, (task,) in enumerate(batches):
        expected = Tasks()[index]
        for name in expected.keys() - {"half", "name"}:
            assert torch.equal(task[name], expected[name]) and task[name].dtype == expected[name].dtype
        assert torch.equal(task["half"][0], expected["half"][0]) and task["name"] == expected["name"]
    stacked = list(Loader(Clips(), batch_size=40, num_workers=1))
    assert [batch.shape[0] for batch in stacked] == [40, 40] and stacked[1][5].eq(45).all()
    assert not stacked[0].is_shared()


def test_enough_shared_memory_is_used():
    assert loader.little_shared_memory() or next(iter(Loader(Clips(), batch_size=2, num_workers=1))).is_shared()


@pytest.mark.parametrize("limit, expected", [(64, "Only 64 files"), (1024, None), (resource.RLIM_INFINITY, None)])
def test_few_open_files_are_noticed(limit, expected, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 0, 0, 2**30, 0, 0, 0, 0, 255)))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    problem = loader.little_shared_memory()
    assert problem is None if expected is None else problem.startswith(expected)


def test_systems_without_statvfs_use_their_own_way(monkeypatch):
    monkeypatch.delattr(os, "statvfs")  # as on Windows
    assert loader.little_shared_memory() is None


def test_missing_shared_memory_is_noticed(monkeypatch):
    def missing(path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "statvfs", missing)
    assert loader.little_shared_memory() == "There is no /dev/shm"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM, errno.EROFS], ids=errno.errorcode.get)
def test_workers_that_cannot_start_are_one_message(code, monkeypatch):
    def fail(self):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(DataLoader, "__iter__", fail)
    with pytest.raises(DmgalError, match=r"--data\.num-workers 0"):
        iter(Loader(Clips(), num_workers=2))


PROGRAM = """
from test_loader import Clips
from dmgal.loader import Loader

if __name__ == "__main__":
    for count, batch in enumerate(Loader(Clips(), batch_size=20, num_workers=2, prefetch_factor=4)):
        assert batch[3].eq(20 * count + 3).all()
    print("all batches")
"""


@pytest.mark.slow
def test_container_with_little_shared_memory(tmp_path):
    """Docker's default of 64 MB, with 96 MB of clips in flight, in a mount namespace of its own."""
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    in_namespace = ["unshare", "-m", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*in_namespace, mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace of its own (root)")
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [*in_namespace, f'{mount} && exec "$0" program.py', sys.executable]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "all batches\n", done.stderr
