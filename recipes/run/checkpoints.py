"""Checkpoints of a run, with checksums. The newest few are kept.

    checkpoints/step_00000400/checkpoint.json        format, progress, size and hash of each file
    checkpoints/step_00000400/model.safetensors      trained weights and batch norm statistics
    checkpoints/step_00000400/optimizer.safetensors
    checkpoints/step_00000400/average.safetensors    if train.ema is set

A kill at any time leaves the earlier checkpoints complete. A damaged one is skipped with a warning, and the one before
it is used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor

from dmgal import __version__
from dmgal.errors import DmgalError
from dmgal.files import parse_json, read_text, write_text
from dmgal.recipes.run.tensors import read_tensors, write_tensors
from dmgal.recipes.run.whole_folders import replace_folder, restore_folder

logger = logging.getLogger(__name__)
FORMAT = 1
"""Format version of ``checkpoint.json``, raised if older versions cannot read new files."""
INDEX = "checkpoint.json"
NAME = "step_" + 8 * "[0-9]"
BLOCK = 2**22

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by file name without suffix, and by tensor name."""


@dataclass(frozen=True)
class Checkpoint:
    """State saved after a step: JSON progress, and tensors on the CPU."""

    folder: Path
    progress: dict[str, Any]
    tensors: Tensors

    @property
    def step(self) -> int:
        """The step after which it was saved."""
        return int(self.folder.name.rpartition("_")[2])


class Checkpoints:
    """The ``keep`` newest checkpoints of a run, in subfolders of a folder that the first save creates."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Tensors, progress: Mapping[str, object]) -> None:
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
        replace_folder(partial, folder)
        _to_disk(self.folder)
        self._prune(step)

    def amend(self, step: int, progress: Mapping[str, object]) -> None:
        """Replace the progress of the checkpoint of a step."""
        folder = self._folder(step)
        _write_index(folder, _read_index(folder)["files"], progress)

    def newest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, or None if there are none. Warn of damaged ones.

        Raises:
            DmgalError: all are damaged, or one was written by a newer version.
        """
        folders = self._folders()
        for folder in reversed(folders):
            try:
                return _read(folder)
            except (_DamagedError, OSError) as damage:
                logger.warning("warning: the checkpoint %s is damaged (%s) and is skipped", folder, damage)
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
        for old in self.folder.glob(f".{NAME}.old"):
            restore_folder(self.folder / old.stem.removeprefix("."))
        for partial in self.folder.glob(f".{NAME}.*"):
            shutil.rmtree(partial, ignore_errors=True)

    def _prune(self, newest: int) -> None:
        up_to_here = [folder for folder in self._folders() if folder <= self._folder(newest)]
        for folder in up_to_here[: -self.keep]:
            trash = folder.with_name(f".{folder.name}.partial")
            folder.rename(trash)  # so that a kill leaves nothing that looks complete
            shutil.rmtree(trash)

    def _folder(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(NAME) if path.is_dir())


class _DamagedError(Exception):
    """A damaged checkpoint, with a short reason."""


def _write(folder: Path, tensors: Tensors, progress: Mapping[str, object]) -> None:
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
        index: dict[str, Any] = parse_json(read_text(folder / INDEX))
        number = int(index["format"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
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
    files, progress = index.get("files"), index.get("progress")
    if not isinstance(files, dict) or not isinstance(progress, dict) or not all(map(_is_file, files, files.values())):
        raise _DamagedError(f"{INDEX} has no files or no progress")
    return index


def _is_file(name: str, content: object) -> bool:
    is_plain = Path(name).name == name and name.endswith(".safetensors")
    return is_plain and isinstance(content, dict) and content.keys() == {"bytes", "blake2b"}


def _write_index(folder: Path, files: Mapping[str, object], progress: Mapping[str, object]) -> None:
    index = {"format": FORMAT, "dmgal": __version__, "files": dict(files), "progress": dict(progress)}
    text = json.dumps({**index, "checksum": _hash_of_text(index)}, indent=1, allow_nan=False)
    write_text(folder / INDEX, text + "\n")


def _hash_of_text(index: Mapping[str, object]) -> str:
    return blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(path: Path) -> dict[str, object]:
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
