"""Checkpoints that survive being killed: whole or not there, each with checksums, the last few kept.

    checkpoints/step_00000400/checkpoint.json        format, progress, size and hash of each file
    checkpoints/step_00000400/model.safetensors      what is trained, and statistics
    checkpoints/step_00000400/optimizer.safetensors
    checkpoints/step_00000400/average.safetensors    where train.ema is set

A folder is written under another name and renamed. One that was damaged since is passed over with a warning that
names it, and the one before is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from dmgal import __version__
from dmgal.errors import DmgalError
from dmgal.recipes.runs import read_tensors, write_tensors, write_text
from dmgal.recipes.saving.swapping import mend, put_in_place

FORMAT = 1
"""Of ``checkpoint.json``; it grows when older versions could not read what is written."""
INDEX = "checkpoint.json"
NAME = re.compile(r"\.?(step_\d{8})(\.\w+)?")
BLOCK = 2**22

Tensors = dict[str, dict[str, Tensor]]
"""By file, without its suffix, and by name."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after a step: progress as JSON holds it, and tensors on the CPU."""

    folder: Path
    progress: dict[str, Any]
    tensors: Tensors


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: holds one folder for each; made with the first.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, tensors: Tensors, progress: Mapping[str, Any]) -> None:
        """Writes a checkpoint and deletes the oldest ones beyond ``keep``.

        Raises:
            OSError: it cannot be written; earlier ones are untouched.
        """
        place = self._place(step)
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(partial, tensors, progress)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            raise
        put_in_place(partial, place)
        _to_disk(self.folder)
        self._prune(step)

    def amend(self, step: int, progress: Mapping[str, Any]) -> None:
        """Replaces the progress of the checkpoint of a step."""
        place = self._place(step)
        _write_index(place, _read_index(place)["files"], progress)

    def newest(self) -> Checkpoint | None:
        """The newest undamaged one; None where there are none at all. Damaged ones are told.

        Raises:
            DmgalError: all are damaged, or one was written by a newer version.
        """
        places = sorted((p for p in self._places() if not p.name.startswith(".")), reverse=True)
        for place in places:
            try:
                return _read(place)
            except (_DamagedError, OSError) as damage:
                tqdm.write(f"warning: the checkpoint {place} is damaged ({damage}) and is passed over", file=sys.stderr)
        if not places:
            return None
        raise DmgalError(
            "No checkpoint of this run can be read.",
            received=f"{len(places)} damaged in {self.folder}",
            expected="at least one that is whole",
            remedy="copy the run again, or delete that folder to train from the beginning",
        )

    def clean_up(self) -> None:
        """Deletes what a kill left half. Only for the one process that writes here."""
        for place in self._places():
            mend(self.folder / NAME.fullmatch(place.name)[1])  # type: ignore[index]
        for place in self._places():
            if place.name.startswith("."):
                shutil.rmtree(place, ignore_errors=True)

    def _prune(self, newest: int) -> None:
        up_to_here = sorted(p for p in self._places() if not p.name.startswith(".") and p <= self._place(newest))
        for place in up_to_here[: -self.keep]:
            leaving = place.with_name(f".{place.name}.partial")
            place.rename(leaving)  # so that a kill leaves nothing that looks whole
            shutil.rmtree(leaving)

    def _place(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _places(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]


class _DamagedError(Exception):
    """What is wrong with a checkpoint, in a few words."""


def _write(place: Path, tensors: Tensors, progress: Mapping[str, Any]) -> None:
    for name, values in tensors.items():
        write_tensors(place / f"{name}.safetensors", values)
    _write_index(place, {path.name: _content(path) for path in sorted(place.iterdir())}, progress)
    for path in place.iterdir():
        _to_disk(path)


def _read(place: Path) -> Checkpoint:
    index = _read_index(place)
    for name, content in index["files"].items():
        path = place / name
        if not path.is_file():
            raise _DamagedError(f"{name} is missing")
        if path.stat().st_size != content["bytes"]:
            raise _DamagedError(f"{name} has {path.stat().st_size} of {content['bytes']} bytes")
        if _content(path) != content:
            raise _DamagedError(f"{name} does not have the checksum that was saved")
    tensors = {Path(name).stem: read_tensors(place / name) for name in index["files"]}
    return Checkpoint(place, index["progress"], tensors)


def _read_index(place: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((place / INDEX).read_text(encoding="utf-8"))
        number = int(index["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{INDEX} cannot be read") from error
    if number > FORMAT:
        raise DmgalError(
            "This checkpoint was written by a newer version of dmgal.",
            received=f"{place}: format {number}, dmgal {index.get('dmgal')}",
            expected=f"format {FORMAT} or older, which dmgal {__version__} reads",
            remedy="update dmgal to that version",
        )
    written = index.pop("checksum", None)
    if written != _hash_of_text(index):
        raise _DamagedError(f"{INDEX} does not have the checksum that was saved")
    return index


def _write_index(place: Path, files: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    index = {"format": FORMAT, "dmgal": __version__, "files": dict(files), "progress": dict(progress)}
    text = json.dumps({**index, "checksum": _hash_of_text(index)}, indent=1, allow_nan=False)
    write_text(place / INDEX, text + "\n")


def _hash_of_text(index: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content(path: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    hashed = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hashed.update(block)
    return {"bytes": path.stat().st_size, "blake2b": hashed.hexdigest()}


def _to_disk(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk, where the system can say so."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
