"""A gallery as one safetensors file: tensors by name, all else as JSON in its metadata, and a checksum over both.

    state.NAME   states of the enrolled clips, first dimension S
    view.NAME    states of augmented views
    labels, view_clips

The file is written under another name and renamed, so it is whole or not there. Every byte is checked when it is read.
Who changes a gallery holds the lock on ``.NAME.lock`` beside it, which stays behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ... import __version__
from ...backbones.video_state import VideoState
from ...errors import DmgalError
from ..exclusive import exclusively
from ..gallery import Gallery
from ..listing import printable
from .rejection import Rejection

FORMAT = 1


@contextmanager
def changing(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """From reading a gallery to writing it nobody else does so, or one of two changes would be lost.

    Args:
        path: of the gallery, which need not be there yet.
        while_waiting: called once, before the wait for another process.

    Raises:
        DmgalError: its folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusively(path.with_name(f".{path.name}.lock"), while_waiting))
        except OSError as error:
            raise _cannot_be_written(path, error) from error
        yield


def save_gallery(gallery: Gallery, path: Path) -> None:
    """Write a gallery whole or not at all.

    Raises:
        DmgalError: it cannot be written, for example on a full disk; what was there before is left as it was.
    """
    tensors = {
        **{f"state.{name}": tensor for name, tensor in gallery.states.items()},
        **{f"view.{name}": tensor for name, tensor in gallery.views.items()},
        "labels": gallery.labels,
        "view_clips": gallery.view_clips,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(
        {
            "format": FORMAT,
            "class_names": gallery.class_names,
            "clips": gallery.clips,
            "contents": [f"{content:016x}" for content in gallery.contents],
            "made_with": dict(gallery.made_with),
            "rejection": None if gallery.rejection is None else asdict(gallery.rejection),
            "dmgal": __version__,
        }
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"gallery": text, "checksum": checksum(text, tensors)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise _cannot_be_written(path, error) from error


def load_gallery(path: Path) -> Gallery:
    """Read a gallery onto the CPU.

    Raises:
        DmgalError: no file, one that is not a gallery, or a damaged one.
    """
    if not path.is_file():
        _refuse("There is no such gallery.", path, "no such file", "enroll clips with 'dmgal enroll' first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        _refuse("The gallery cannot be read.", path, str(error), "copy it again, or enroll its clips again")
    if "gallery" not in metadata:
        _refuse("This file is not a gallery.", path, "safetensors without a gallery's metadata", "mend the path")
    if checksum(metadata["gallery"], tensors) != metadata.get("checksum"):
        _refuse(
            "The gallery is damaged.",
            path,
            "its content differs from its checksum",
            "copy it again, or enroll its clips again; look after the disk",
        )
    told = json.loads(metadata["gallery"])
    if told["format"] != FORMAT:
        received = f"format {told['format']}, written by dmgal {told['dmgal']}"
        _refuse("The gallery was written by another version.", path, received, "enroll its clips again")
    return _gallery(told, tensors)


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the metadata and of every tensor's name, dtype, shape and bytes."""
    digest = blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _gallery(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gallery:
    def part(prefix: str) -> VideoState:
        return VideoState({n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)})

    return Gallery(
        class_names=tuple(told["class_names"]),
        labels=tensors["labels"],
        clips=tuple(told["clips"]),
        contents=tuple(int(content, 16) for content in told["contents"]),
        states=part("state."),
        views=part("view."),
        view_clips=tensors["view_clips"],
        made_with=told["made_with"],
        rejection=None if told["rejection"] is None else Rejection(**told["rejection"]),
    )


def _cannot_be_written(path: Path, error: Exception) -> DmgalError:
    return DmgalError(
        "The gallery cannot be written.",
        received=f"{printable(str(path))}: {error}",
        expected="a folder that can be written to, with room for the file",
        remedy="make room or give another --out; a gallery that was there before is unchanged",
    )


def _refuse(failed: str, path: Path, received: str, remedy: str) -> NoReturn:
    raise DmgalError(
        failed,
        received=f"{printable(str(path))}: {received}",
        expected="a whole file as 'dmgal enroll' writes it",
        remedy=remedy,
    )
