"""Tests of locks between processes and of atomic writes."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
from filelock import FileLock

from dmgal.errors import DmgalError
from dmgal.files import atomic_write, exclusively

HOLDER = """
import sys
from pathlib import Path
from dmgal.files import exclusively
with exclusively(Path(sys.argv[1]), sys.exit):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_wait_is_announced_once_and_ends_with_the_holder(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        waits = []
        with exclusively(path, lambda: (waits.append(1), holder.kill())):
            assert waits == [1]
    with exclusively(path, lambda: pytest.fail("another process holds the lock")):
        assert path.exists()
    assert path.exists(), "deleting it would let two processes in"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    no_locks = pytest.raises(DmgalError, match=r"lock cannot be locked(.|\n)*No locks available")
    with no_locks, exclusively(tmp_path / "lock", lambda: None):
        pass


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_file_unchanged(tmp_path, error):
    path = tmp_path / "list.csv.gz"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        assert temporary.suffix == ".gz" and temporary.name.startswith(".")
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
