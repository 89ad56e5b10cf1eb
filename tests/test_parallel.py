"""Worker processes and SIGINT."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dmgal.errors import DmgalError
from dmgal.parallel import completed, deaf_to_interrupts

ASK = partial(signal.pthread_sigmask, signal.SIG_BLOCK)  # with (), returns the blocked signals


@pytest.fixture(autouse=True)
def default_sigint_handler() -> Iterator[None]:
    """Python's handler of Ctrl-C, which a shell disables for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_workers_block_sigint() -> None:
    """Ctrl-C reaches the whole process group, but workers must not see it, even while they start."""
    masks = list(completed(ASK, [()] * 4, 2))
    assert len(masks) == 4 and all(signal.SIGINT in mask for mask in masks)
    assert signal.SIGINT not in ASK(())


@pytest.mark.slow
def test_dead_workers_are_one_error() -> None:
    with pytest.raises(DmgalError, match=r"The 2 worker processes ended before(.|\n)*Guard the script"):
        list(completed(os._exit, [1, 1], 2))


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


WORKERS = {
    "pool": """
        from dmgal.parallel import completed
        list(completed(wait, range(8), 2))
    """,
    "checks": """
        from dmgal.videos.checking import check_videos
        list(check_videos([(n, Path(str(n))) for n in range(16)], 2, 600.0, wait))
    """,
}
PROGRAM = """
import os, time
from pathlib import Path

def wait(piece):
    Path("started", str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
{}
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKERS)
def test_workers_end_within_two_seconds_of_a_killed_parent(kind: str, tmp_path: Path) -> None:
    """Each worker is busy with a piece that takes ten minutes."""
    (tmp_path / "started").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM.format(WORKERS[kind]))
    program = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path)
    try:
        end = time.monotonic() + 120
        while len(list((tmp_path / "started").iterdir())) < 2 and time.monotonic() < end:
            assert program.poll() is None
            time.sleep(0.05)
    finally:
        program.kill()
        program.wait()
    workers = [int(path.name) for path in (tmp_path / "started").iterdir()]
    end = time.monotonic() + 2
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(map(is_running, workers))


SERVER = """
import time
from multiprocessing import forkserver
from dmgal.videos import checking
checking._context()
first = forkserver._forkserver._preload_modules[:-1]
forkserver.set_forkserver_preload([*first, "slow"])
forkserver.ensure_running()
print(forkserver._forkserver._forkserver_pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the death signal of Linux")
def test_fork_server_ends_while_it_imports(tmp_path: Path) -> None:
    """Without the signal, it would look for its parent only after its imports."""
    (tmp_path / "program.py").write_text(SERVER)
    (tmp_path / "slow.py").write_text("import time, pathlib; pathlib.Path('begun').touch(); time.sleep(60)")
    program = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    server = int(program.stdout.readline())
    while not (tmp_path / "begun").exists():
        assert program.poll() is None
        time.sleep(0.01)
    program.kill()
    program.wait()
    program.stdout.close()
    end = time.monotonic() + 1
    while is_running(server) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(server)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("module", ["dmgal.parallel", "dmgal.cli"])
def test_module_that_new_workers_import_first_is_light(module: str) -> None:
    """A worker watches its parent before it imports anything that takes seconds."""
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
