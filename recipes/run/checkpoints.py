"""Checkpoints of a run with checksums, and the lock of the run folder. The newest few checkpoints are kept.

    checkpoints/step_00000400/checkpoint.json        format, progress, size and hash of each file
    checkpoints/step_00000400/model.safetensors      trained weights and batch norm statistics
    checkpoints/step_00000400/optimizer.safetensors
    checkpoints/step_00000400/average.safetensors    if train.ema is set

A folder is replaced atomically. A damaged checkpoint is skipped with a warning, and the one before it is used.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor
from tqdm import tqdm

from dmgal import __version__
from dmgal.errors import DmgalError
from dmgal.files import exclusively
from dmgal.recipes.run.folder import read_tensors, write_tensors, write_text

FORMAT = 1
"""Format version of ``checkpoint.json``, raised if older versions cannot read new files."""
INDEX = "checkpoint.json"
NAME = re.compile(r"\.?(step_\d{8})(\.\w+)?")
BLOCK = 2**22

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by file name without suffix, and by tensor name."""


@dataclass(frozen=True)
class Checkpoint:
    """State saved after a step: JSON progress, and tensors on the CPU."""

    folder: Path
    progress: dict[str, Any]
    tensors: Tensors


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: parent of the checkpoint folders, created by the first save.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Tensors, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint and delete the oldest ones beyond ``keep``.

        Raises:
            OSError: it cannot be written. Earlier ones are untouched.
        """
        folder = self._folder(step)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(partial, tensors, progress)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # free the space on a full disk
            raise
        put_in_place(partial, folder)
        _to_disk(self.folder)
        self._prune(step)

    def amend(self, step: int, progress: Mapping[str, Any]) -> None:
        """Replace the progress of the checkpoint of a step."""
        folder = self._folder(step)
        _write_index(folder, _read_index(folder)["files"], progress)

    def newest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, or None if there are none. Warn of damaged ones.

        Raises:
            DmgalError: all are damaged, or one was written by a newer version.
        """
        folders = sorted((p for p in self._folders() if not p.name.startswith(".")), reverse=True)
        for folder in folders:
            try:
                return _read(folder)
            except (_DamagedError, OSError) as damage:
                tqdm.write(f"warning: the checkpoint {folder} is damaged ({damage}) and is skipped", file=sys.stderr)
        if not folders:
            return None
        raise DmgalError(
            "No checkpoint of this run can be read.",
            received=f"{len(folders)} damaged in {self.folder}",
            expected="at least one undamaged checkpoint",
            remedy="Copy the run again, or delete that folder to train from the beginning.",
        )

    def clean_up(self) -> None:
        """Remove incomplete folders of a killed run. Only the process that writes here may call it."""
        for folder in self._folders():
            restore_replaced(self.folder / NAME.fullmatch(folder.name)[1])  # type: ignore[index]
        for folder in self._folders():
            if folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)

    def _prune(self, newest: int) -> None:
        up_to_here = sorted(p for p in self._folders() if not p.name.startswith(".") and p <= self._folder(newest))
        for folder in up_to_here[: -self.keep]:
            trash = folder.with_name(f".{folder.name}.partial")
            folder.rename(trash)  # so that a kill leaves nothing that looks complete
            shutil.rmtree(trash)

    def _folder(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]


class _DamagedError(Exception):
    """A damaged checkpoint, with a short reason."""


def _write(folder: Path, tensors: Tensors, progress: Mapping[str, Any]) -> None:
    for name, values in tensors.items():
        write_tensors(folder / f"{name}.safetensors", values)
    _write_index(folder, {path.name: _content(path) for path in sorted(folder.iterdir())}, progress)
    for path in folder.iterdir():
        _to_disk(path)


def _read(folder: Path) -> Checkpoint:
    index = _read_index(folder)
    for name, content in index["files"].items():
        path = folder / name
        if not path.is_file():
            raise _DamagedError(f"{name} is missing")
        if path.stat().st_size != content["bytes"]:
            raise _DamagedError(f"{name} has {path.stat().st_size} of {content['bytes']} bytes")
        if _content(path) != content:
            raise _DamagedError(f"{name} does not have the checksum that was saved")
    tensors = {Path(name).stem: read_tensors(folder / name) for name in index["files"]}
    return Checkpoint(folder, index["progress"], tensors)


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        number = int(index["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{INDEX} cannot be read") from error
    if number > FORMAT:
        raise DmgalError(
            "This checkpoint was written by a newer version of dmgal.",
            received=f"{folder}: format {number}, dmgal {index.get('dmgal')}",
            expected=f"format {FORMAT} or older, which dmgal {__version__} reads",
            remedy="Update dmgal to that version.",
        )
    written = index.pop("checksum", None)
    if written != _hash_of_text(index):
        raise _DamagedError(f"{INDEX} does not have the checksum that was saved")
    return index


def _write_index(folder: Path, files: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    index = {"format": FORMAT, "dmgal": __version__, "files": dict(files), "progress": dict(progress)}
    text = json.dumps({**index, "checksum": _hash_of_text(index)}, indent=1, allow_nan=False)
    write_text(folder / INDEX, text + "\n")


def _hash_of_text(index: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    """Return the size and hash of a file."""
    hashed = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hashed.update(block)
    return {"bytes": path.stat().st_size, "blake2b": hashed.hexdigest()}


def _to_disk(path: Path) -> None:
    """Flush a file or a folder's entries to the disk, if the system supports it."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, the file ``.lock``, which is not deleted.

    Raises:
        DmgalError: another process holds the lock, or the file system has no locks.
        OSError: the file cannot be created.
    """
    lock_file = folder / ".lock"

    def refuse() -> NoReturn:
        raise DmgalError(
            "This run folder is in use.",
            received=f"{folder}, where process {lock_file.read_text(errors='replace').strip() or 'unknown'} trains",
            expected="a folder that no other process trains in",
            remedy="Wait for that process or end it, or pass another --out.",
        )

    with exclusively(lock_file, refuse):
        lock_file.write_text(f"{os.getpid()}\n")
        yield


AT_FDCWD = -100
RENAME_EXCHANGE = 2
RENAME_SWAP = 2


def put_in_place(new: Path, place: Path) -> None:
    """Move the folder ``new`` to ``place`` and delete the previous folder.

    Linux and macOS swap two folders in one step. Other systems and some file systems need two renames. A kill between
    them leaves the old folder beside ``place``. `restore_replaced` restores it.
    """
    if not place.exists():
        new.rename(place)
        return
    if _swap(new, place):
        shutil.rmtree(new)
        return
    old = _aside(place)
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    new.rename(place)
    shutil.rmtree(old)


def restore_replaced(place: Path) -> None:
    """Restore the folder that a kill between two renames left aside."""
    old = _aside(place)
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _swap(one: Path, other: Path) -> bool:
    """Return True if the system has exchanged the two names."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, ctypes.c_uint(RENAME_SWAP)) == 0)
        at = ctypes.c_int(AT_FDCWD)
        return bool(library.renameat2(at, names[0], at, names[1], ctypes.c_uint(RENAME_EXCHANGE)) == 0)
    except (AttributeError, OSError, TypeError):  # the function or, on Windows, the library is missing
        return False
