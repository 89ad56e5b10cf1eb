"""Kills of commands at random times: equal files after a second run, no process left, and no lock that blocks.

    python -m dmgal.bench.kills                  # 60 kills, writes bench/results/kills.json

Each command first runs undisturbed. Then it is started again in an empty place, its main process is killed with
SIGKILL at a time that a seed chooses, and the same command is run to its end. The kill is as at a power cut of the
process only: its workers receive no signal and must notice.

Compared are the bytes of all files, with these exceptions, which hold times of day, durations or the order of workers:
``log.jsonl`` and ``checkpoint.json`` are compared without durations, and results without their date. The clips of a
store are compared, not their order. ``environment.json`` (date, random tracker id), ``checked.jsonl`` (stamps, order)
and ``.lock`` files are left out.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from dmgal.bench.measuring import hardware, write_report
from dmgal.recipes import compare, enroll, evaluate, generate, prepare, store, train
from dmgal.recipes.run.cli_errors import run_recipe
from dmgal.videos.store.store import DATA, INDEX, read_records

SECONDS_TO_END = 2.0
"""Time in which the workers of a killed command must end."""
SECONDS_TO_FINISH = 300.0
"""Time in which the second run must end. A lock that is never released would exceed it."""
VARYING = ("seconds", "data_seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    kills: int = 60
    """Number of kills of all commands."""
    seed: int = 0
    """Seed of the times."""
    out: Path = Path(__file__).parent / "results" / "kills.json"
    """File for the results."""


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Args:
        name: of the command, in ``MAINS``.
        share: share of the kills, relative to the other commands. Commands with worker processes start slowly.
        words: arguments, where ``VIDEOS`` is the folder of the videos, ``RUN`` a trained run, and ``OUT`` the folder to
            write to.
        on_run: the command writes into a copy of ``RUN`` at ``OUT/run``.
    """

    name: str
    share: int
    words: str
    on_run: bool = False

    def arguments(self, work: Path, out: Path) -> list[str]:
        """Return the arguments with their paths."""
        folders = {"VIDEOS": work / "videos", "RUN": work / "train/undisturbed/run", "OUT": out}
        return [re.sub("VIDEOS|RUN|OUT", lambda match: str(folders[match[0]]), word) for word in self.words.split()]


SMALL = "--data.num-frames 2 --data.num-workers 1 --ways 2 --queries 1 --train.steps 6 --train.validate-every 2 --quiet"
SMALL += " --train.validation-episodes 4 --train.checkpoint-every 1 --train.warmup-steps 0"
MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "compare": compare.main,
    "enroll": enroll.main,
    "prepare": prepare.main,
    "store": store.main,
    "generate": generate.main,
}
COMMANDS = (
    Command("train", 12, f"method/smga --data.root VIDEOS {SMALL} --out OUT/run --resume"),
    Command("evaluate", 10, "OUT/run --episodes 50 --quiet", on_run=True),
    Command("compare", 10, "OUT/run --episodes 50 --out OUT/compared.json --quiet", on_run=True),
    Command("enroll", 10, "RUN VIDEOS/test --out OUT/a.safetensors --quiet"),
    Command("prepare", 6, "--root VIDEOS --out OUT/prepared --workers 1 --quiet"),
    Command("store", 6, "--data.root VIDEOS --data.num-frames 2 --size 48 --out OUT/store --workers 2 --quiet"),
    Command(
        "generate",
        6,
        "moving_shapes --clips-per-class 2 --frames 8 --pixels 16 --workers 2 --out OUT/shapes --quiet",
    ),
)


def write_videos(root: Path) -> None:
    """Write three splits of three classes with four clips each, as folders of frames."""
    for number in range(36):
        split = ("train", "val", "test")[number // 12]
        folder = root / split / f"{split}{number // 4 % 3}" / str(number % 4)
        folder.mkdir(parents=True)
        for frame in range(2):
            Image.new("RGB", (48, 48), (7 * number, 99 * frame, 60)).save(folder / f"{frame}.png")


def start(command: Command, work: Path, out: Path) -> int:
    """Start a command in a fork of this process, which has imported the library, and return its process id.

    The process has a session of its own, which its workers share.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    os.setsid()
    code = 70
    try:
        printed = os.open(out.parent / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), printed, printed)):
            os.dup2(handle, number)
        _pretend_to_be_the_command(work)
        sys.argv = [f"dmgal {command.name}", *command.arguments(work, out)]
        run_recipe(MAINS[command.name])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _pretend_to_be_the_command(work: Path) -> None:
    """Make new worker processes import the main script of ``dmgal``, not this one, which imports torch."""
    script = work / "dmgal.py"
    script.write_text("from dmgal.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    main = sys.modules["__main__"]
    main.__spec__, main.__file__ = None, str(script)


def ended(process: int, seconds: float) -> int | None:
    """Return the exit code of a process, negative for a signal, or None if it still runs after some seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def place(command: Command, work: Path, name: str) -> Path:
    """Make an empty folder to write to, or one with a copy of the run."""
    out = work / command.name / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if command.on_run:
        shutil.copytree(work / "train/undisturbed/run", out / "run")
    return out


def living(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(folder.name))
    return found


def contents(out: Path) -> dict[str, object]:
    """Return what must be equal, by file."""
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name in ("environment.json", "checked.jsonl", DATA) or path.name.endswith(".lock"):
            continue
        found[name] = _comparable(path, out)
    return found


def _comparable(path: Path, out: Path) -> object:
    if path.name == "log.jsonl":
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: value for key, value in entry.items() if key not in VARYING} for entry in entries]
    if path.name == "checkpoint.json":
        index = json.loads(path.read_text())
        for name in VARYING:
            index["progress"]["progress"].pop(name, None)
        return {**index, "checksum": None}
    if path.suffix == ".json" and b'"environment"' in (text := path.read_bytes()):
        result = json.loads(text.replace(str(out).encode(), b"OUT"))
        result["environment"].pop("date")
        return result
    if path.name == INDEX:
        data = (path.parent / DATA).read_bytes()
        records = read_records(path.parent).values()
        return sorted((r.video, r.frames, r.reason, data[r.offset : r.offset + r.length]) for r in records)
    return path.read_bytes().replace(str(out).encode(), b"OUT")


def kill(command: Command, work: Path, after: float, expected: dict[str, object]) -> dict[str, object]:
    """Kill a command after some seconds, run it again, and return what was found."""
    out = place(command, work, "killed")
    process = start(command, work, out)
    code = ended(process, after)
    if code is None:
        os.kill(process, signal.SIGKILL)
        code = ended(process, SECONDS_TO_FINISH)
    end = time.monotonic() + SECONDS_TO_END
    while (left := living(process)) and time.monotonic() < end:
        time.sleep(0.05)
    names = [_command_line(one) for one in left]
    _kill_all(left)
    again = start(command, work, out)
    second = ended(again, SECONDS_TO_FINISH)
    if second is None:
        _kill_all(living(again))
    found = contents(out)
    return {
        "command": command.name,
        "after_seconds": round(after, 2),
        "killed": code == -signal.SIGKILL,
        "processes_left": names,
        "exit_code": second,
        "different_files": [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)],
    }


def _command_line(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]
    return "ended meanwhile"


def _kill_all(processes: Sequence[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _count(command: Command, kills: int) -> int:
    return round(kills * command.share / sum(one.share for one in COMMANDS))


def main(argv: list[str] | None = None) -> None:
    """Kill, write the report, and exit with 1 if anything was found."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    results, durations, draw = [], {}, random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_videos(work / "videos")
        for command in COMMANDS:
            began, out = time.monotonic(), place(command, work, "undisturbed")
            if ended(start(command, work, out), SECONDS_TO_FINISH) != 0:
                raise RuntimeError(f"{command.name} failed: {(out.parent / 'printed.txt').read_text()[-2000:]}")
            durations[command.name] = time.monotonic() - began
            expected = contents(out)
            for _ in range(_count(command, options.kills)):
                results.append(kill(command, work, draw.uniform(0, durations[command.name]), expected))
                print(json.dumps(results[-1]), flush=True)
    killed = [result for result in results if result["killed"]]  # enroll refuses to replace a finished gallery
    bad = [r for r in killed if r["processes_left"] or r["exit_code"] != 0 or r["different_files"]]
    report = {
        "hardware": hardware(),
        "seed": options.seed,
        "kills": len(killed),
        "ended_before_the_kill": len(results) - len(killed),
        "bad": bad,
        "seconds_undisturbed": {name: round(seconds, 1) for name, seconds in durations.items()},
        "results": results,
    }
    write_report(report, options.out, show=False)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
