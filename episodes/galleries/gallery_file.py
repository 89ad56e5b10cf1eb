"""Galleries as safetensors files: tensors by name, everything else as JSON metadata, and a checksum over both.

    state.NAME   states of the enrolled clips, first dimension S
    view.NAME    states of augmented views
    labels, view_clips

Files are written atomically under a temporary name. Every byte is verified on reading. A process that changes a gallery
holds the lock on ``.NAME.lock`` in the same folder; the lock file is not deleted.
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
    """Lock a gallery from reading to writing it, so that no change of another process is lost.

    Args:
        path: file of the gallery, which does not need to exist yet.
        while_waiting: called once before the wait for another process.

    Raises:
        DmgalError: the folder is not writable.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusively(path.with_name(f".{path.name}.lock"), while_waiting))
        except OSError as error:
            raise _cannot_be_written(path, error) from error
        yield


def save_gallery(gallery: Gallery, path: Path) -> None:
    """Write a gallery atomically.

    Raises:
        DmgalError: the file cannot be written, for example because the disk is full. An existing file stays unchanged.
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
        DmgalError: the file does not exist, is not a gallery, or is damaged.
    """
    if not path.is_file():
        _raise("There is no such gallery.", path, "no such file", "Enroll clips with 'dmgal enroll' first.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        _raise("The gallery cannot be read.", path, str(error), "Copy the file again, or enroll its clips again.")
    if "gallery" not in metadata:
        _raise("This file is not a gallery.", path, "safetensors without a gallery's metadata", "Correct the path.")
    if checksum(metadata["gallery"], tensors) != metadata.get("checksum"):
        _raise(
            "The gallery is damaged.",
            path,
            "its content differs from its checksum",
            "Check the disk, then copy the file again or enroll its clips again.",
        )
    content = json.loads(metadata["gallery"])
    if content["format"] != FORMAT:
        received = f"format {content['format']}, written by dmgal {content['dmgal']}"
        _raise("The gallery was written by another version.", path, received, "Enroll its clips again.")
    return _to_gallery(content, tensors)


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of the metadata and of the name, dtype, shape and bytes of each tensor."""
    digest = blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_gallery(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gallery:
    return Gallery(
        class_names=tuple(content["class_names"]),
        labels=tensors["labels"],
        clips=tuple(content["clips"]),
        contents=tuple(int(value, 16) for value in content["contents"]),
        states=_tensors_with_prefix(tensors, "state."),
        views=_tensors_with_prefix(tensors, "view."),
        view_clips=tensors["view_clips"],
        made_with=content["made_with"],
        rejection=None if content["rejection"] is None else Rejection(**content["rejection"]),
    )


def _tensors_with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> VideoState:
    return VideoState({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})


def _cannot_be_written(path: Path, error: Exception) -> DmgalError:
    return DmgalError(
        "The gallery cannot be written.",
        received=f"{printable(str(path))}: {error}",
        expected="a writable folder with enough space for the file",
        remedy="Free disk space or choose another --out. An existing gallery is unchanged.",
    )


def _raise(problem: str, path: Path, received: str, remedy: str) -> NoReturn:
    raise DmgalError(
        problem,
        received=f"{printable(str(path))}: {received}",
        expected="a complete file written by 'dmgal enroll'",
        remedy=remedy,
    )
