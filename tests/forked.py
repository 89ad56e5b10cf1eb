"""Python programs in forks of one process that has imported the library: starting them takes no ten seconds each.

``run(["-m", "dmgal.recipes.train", "--out", "run"])`` stands for ``subprocess.run([sys.executable, ...])``, and
``start`` for ``Popen``. With ``processes``, a program runs several times and is told what torchrun would tell it. The
process that forks has not started a thread of torch. Tests of launchers, imports and exits start fresh ones instead.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARY = ("dmgal.cli", "dmgal.recipes.train", "dmgal.recipes.evaluate", "dmgal.recipes.enroll")
_server: subprocess.Popen[str] | None = None
_outputs: list[Path] = []


@dataclass
class Program:
    """The running processes of a program, by rank."""

    pids: list[int]
    output: Path
    codes: list[int | None] = field(default_factory=list)

    def poll(self) -> list[int | None]:
        """Return the exit code of each process, negative if a signal ended it, or None while it runs."""
        self.codes = _ask({"poll": self.pids})
        return self.codes

    def wait(self) -> list[int]:
        """Wait for all processes and return their exit codes."""
        while None in self.poll():
            time.sleep(0.01)
        return [code for code in self.codes if code is not None]

    def kill(self) -> None:
        """Kill what is left, and wait for it."""
        for pid, code in zip(self.pids, self.poll(), strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
        self.wait()

    @property
    def stdout(self) -> str:
        """Text that the processes have printed so far."""
        return (self.output / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """Messages of the processes so far."""
        return (self.output / "stderr").read_text()


def start(words: list[str], processes: int = 1, cwd: Path | None = None, **environment: str) -> Program:
    """Start ``python WORDS``: a script with arguments, ``-c`` with code, or ``-m`` with a command of the library."""
    output = Path(tempfile.mkdtemp(prefix="forked-"))
    _outputs.append(output)
    for name in ("stdout", "stderr"):
        (output / name).touch()
    if words[0] == "-c":
        (output / "program.py").write_text(words[1])
        words = [str(output / "program.py"), *words[2:]]
    places: list[dict[str, str]] = [{} for _ in range(processes)]
    if processes > 1:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
        for rank, place in enumerate(places):
            place |= {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            place |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    environments = [{**os.environ, "OMP_NUM_THREADS": "1", **environment, **place} for place in places]
    job = {"words": words, "environments": environments, "cwd": str(cwd or Path.cwd()), "output": str(output)}
    return Program(_ask({"start": job}), output)


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Return what a program printed, and its largest exit code. ``options`` are those of ``start``."""
    program = start(words, **options)
    codes = program.wait()
    return subprocess.CompletedProcess(words, max(codes, key=abs), program.stdout, program.stderr)


def free_port() -> int:
    """Return a port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _ask(question: dict[str, Any]) -> Any:
    global _server
    if _server is None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        _server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        atexit.register(_end_server)
    assert _server.stdin is not None and _server.stdout is not None
    _server.stdin.write(json.dumps(question) + "\n")
    _server.stdin.flush()
    return json.loads(_server.stdout.readline())


def _end_server() -> None:
    if _server is not None:
        _server.communicate()
    for output in _outputs:
        shutil.rmtree(output, ignore_errors=True)


# ---- the process that forks ----


def serve() -> None:
    """Answer questions until the input ends."""
    for module in LIBRARY:
        import_module(module)
    codes: dict[int, int | None] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer: list[Any] = _fork(question["start"])
            codes |= dict.fromkeys(answer)
        else:
            answer = [_exit_code(pid, codes) for pid in question["poll"]]
        print(json.dumps(answer), flush=True)


def _fork(job: dict[str, Any]) -> list[int]:
    children = []
    for environment in job["environments"]:
        child = os.fork()
        if not child:
            _run_child(job["words"], environment, job["cwd"], Path(job["output"]))
        children.append(child)
    return children


def _exit_code(pid: int, codes: dict[int, int | None]) -> int | None:
    if codes[pid] is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
    return codes[pid]


def _run_child(words: list[str], environment: dict[str, str], cwd: str, output: Path) -> None:
    code = 1
    try:
        os.setsid()
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(os.devnull if number == 0 else output / name, flags, 0o644), number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        _run_program(words)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _run_program(words: list[str]) -> None:
    if words[0] == "-m":
        name = "dmgal.cli" if words[1] == "dmgal" else words[1]
        sys.argv = words[1:]
        from dmgal.recipes.run.cli_errors import run_recipe

        run_recipe(import_module(name).main)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve()
