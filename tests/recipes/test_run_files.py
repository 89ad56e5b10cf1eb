"""Run folders that others made or damaged: each bad file gives one message and exit code 2, and never a hang."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmgal.cli import main

NAMES = [
    *("recipe.yaml", "paths.yaml", "split.csv"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/weights.safetensors"),
]


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**34)


def _become(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


BREAK: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(bytes(range(255, 0, -1)) * 9),
    "wrong type": lambda path: path.write_text("[1, 2]\n"),
    "null bytes": lambda path: path.write_bytes(path.read_bytes()[:20] + b"\0" * 99),
    "deep": lambda path: path.write_text("[" * 40_000),
    "huge": _huge,
    "pipe": _become(os.mkfifo),
    "device": _become(lambda path: path.symlink_to("/dev/zero")),
    "folder": _become(Path.mkdir),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run, frame_folders) -> Path:
    """A run with an adapter, a trained head and a drawn split, whose videos are elsewhere."""
    folder = tmp_path_factory.mktemp("run_files")
    for split in ("train", "val", "test"):
        shutil.copytree(frame_folders / split, folder / "videos", dirs_exist_ok=True)
    return save_run(folder / "run", "dmgal_adapter", "--data.root", str(folder / "videos"), "--data.split-file", "None")


def evaluate(run: Path) -> int:
    return main(["evaluate", str(run), "--episodes", "20", "--states", "memory", "--quiet"])


@pytest.mark.parametrize("kind", BREAK)
@pytest.mark.parametrize("name", NAMES)
def test_a_bad_file_of_a_run_gives_one_message(run, tmp_path, capsys, name, kind) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    BREAK[kind](copy / name)
    start = time.monotonic()
    assert evaluate(copy) == 2
    printed = capsys.readouterr().err
    assert time.monotonic() - start < 5 and printed.count("error: ") == 1 and "Traceback" not in printed
    parts = [line.split(":")[0].strip() for line in printed[printed.index("error: ") :].splitlines()]
    assert parts == ["error", "received", "expected", "what to do"] and len(printed) < 2500


def test_an_intact_run_is_evaluated(run, tmp_path) -> None:
    assert evaluate(Path(shutil.copytree(run, tmp_path / "run"))) == 0
