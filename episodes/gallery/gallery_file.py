"""The file of a gallery: safetensors with JSON metadata and a checksum over both, which is verified on reading.

The tensors are ``state.NAME`` of the clips, ``view.NAME`` of augmented views, ``negative.NAME`` of negatives,
``labels``, ``view_clips``, ``negative_labels`` and ``texts``. A process that changes a gallery holds the lock
``.NAME.lock`` beside it. Earlier formats (1: clips, 2: with texts, 3: one threshold for all classes) are still read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ... import __version__
from ...errors import DmgalError
from ...files import atomic_write, exclusively, open_regular, parse_json, printable, reason
from ..evaluation.states import PrecomputedStates, with_prefix
from .gallery import Gallery
from .negatives import Negatives
from .task import Rejection
from .texts import texts_as_json, texts_of_file

logger = logging.getLogger(__name__)

FORMAT, READABLE = 4, (1, 2, 3, 4)


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Lock a gallery from reading to writing it, so that no change of another process is lost.

    Args:
        path: file of the gallery, which does not need to exist yet.

    Raises:
        DmgalError: the folder is not writable.
    """
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_file = path.with_name(f".{path.name}.lock")
            wait = partial(logger.info, "waiting for another process that changes %s", path)
            stack.enter_context(exclusively(lock_file, wait))
        except OSError as error:
            raise _cannot_be_written(path, error) from error
        yield


def save_gallery(gallery: Gallery, path: Path) -> None:
    """Write a gallery atomically.

    Raises:
        DmgalError: the file cannot be written, for example because the disk is full. An existing file stays unchanged.
    """
    tensors = {
        **{f"state.{name}": tensor for name, tensor in gallery.states.tensors().items()},
        **{f"view.{name}": tensor for name, tensor in gallery.views.tensors().items()},
        "labels": gallery.labels,
        "view_clips": gallery.view_clips,
    }
    if gallery.texts is not None:
        tensors["texts"] = gallery.texts.features
    if gallery.negatives is not None:
        tensors |= gallery.negatives.tensors()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(
        {
            "format": FORMAT,
            "texts": gallery.texts and texts_as_json(gallery.texts),
            "class_names": gallery.class_names,
            "clips": gallery.clips,
            "contents": [f"{content:016x}" for content in gallery.contents],
            "made_with": dict(gallery.made_with),
            "rejection": None if gallery.rejection is None else asdict(gallery.rejection),
            "model": dict(gallery.model),
            "negatives": gallery.negatives and gallery.negatives.as_json(),
            "dmgal": __version__,
        }
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"gallery": text, "checksum": checksum(text, tensors)})
    except (OSError, SafetensorError) as error:
        raise _cannot_be_written(path, error) from error


def load_gallery(path: Path) -> Gallery:
    """Read a gallery onto the CPU.

    Raises:
        DmgalError: the file does not exist, is not a gallery, or is damaged.
    """
    if not os.path.lexists(path):
        raise _unusable("There is no such gallery.", path, "no such file", "Enroll clips with 'dmgal enroll' first.")
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if os.name == "nt":  # the tensors are a map of the file, which Windows does not let anyone replace
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    except (SafetensorError, OSError, MemoryError, ValueError, LookupError, TypeError, RuntimeError) as error:
        remedy = "Copy the file again, or enroll its clips again."
        raise _unusable("The gallery cannot be read.", path, reason(error)[:300], remedy) from error
    if "gallery" not in metadata:
        raise _unusable(
            "This file is not a gallery.", path, "safetensors without a gallery's metadata", "Correct the path."
        )
    if checksum(metadata["gallery"], tensors) != metadata.get("checksum"):
        raise _unusable(
            "The gallery is damaged.",
            path,
            "its content differs from its checksum",
            "Check the disk, then copy the file again or enroll its clips again.",
        )
    try:
        content = parse_json(metadata["gallery"])
        if content["format"] in READABLE:
            return _to_gallery(content, tensors)
        received = f"format {content['format']}, written by dmgal {content['dmgal']}"
    except DmgalError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        received = f"{type(error).__name__}: {reason(error)[:200]}"
        raise _unusable("The gallery has wrong values.", path, received, "Enroll its clips again.") from error
    raise _unusable("The gallery was written by another version.", path, received, "Enroll its clips again.")


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of the metadata and of the name, dtype, shape and bytes of each tensor."""
    digest = blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_gallery(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gallery:
    """Return the gallery of a file's content. A forged one raises one of several errors."""
    texts, negatives = content.get("texts"), content.get("negatives")
    gallery = Gallery(
        class_names=tuple(content["class_names"]),
        labels=tensors["labels"],
        clips=tuple(content["clips"]),
        contents=tuple(int(value, 16) for value in content["contents"]),
        states=PrecomputedStates.from_tensors(with_prefix(tensors, "state.")),
        views=PrecomputedStates.from_tensors(with_prefix(tensors, "view.")),
        view_clips=tensors["view_clips"],
        made_with=content["made_with"],
        rejection=None if content["rejection"] is None else Rejection(**content["rejection"]),
        texts=None if texts is None else texts_of_file(texts, tensors["texts"], tuple(content["class_names"])),
        model=dict(content.get("model", {})),  # earlier versions wrote none
        negatives=None if negatives is None else Negatives.of_file(negatives, tensors),
    )
    _check_parts(gallery)
    return gallery


def _check_parts(gallery: Gallery) -> None:
    """Raise an error as in `_to_gallery` unless the parts of a gallery have fitting sizes and types."""
    counts = {len(gallery.labels), len(gallery.clips), len(gallery.contents), gallery.states.num_videos}
    names = (*gallery.class_names, *gallery.clips, *gallery.made_with, *gallery.made_with.values())
    model = [text for option in gallery.model.items() for text in option if text is not None]
    views = gallery.view_clips
    if any(indices.dtype != torch.int64 or indices.dim() != 1 for indices in (gallery.labels, views)):
        raise ValueError("labels or views that are no list of numbers")
    for states in (gallery.states, gallery.views):
        if any(tensor.shape[0] != states.num_videos for tensor in states.tensors().values()):
            raise ValueError("states of different numbers of clips")
    if len(counts) > 1 or not all(isinstance(text, str) for text in (*names, *model)):
        raise ValueError("labels, clips and states do not match")
    if gallery.rejection is not None:
        if gallery.rejection.floor is not None and gallery.negatives is None:
            raise ValueError("a threshold by negatives without negatives")
        if gallery.rejection.offsets and len(gallery.rejection.offsets) != gallery.n_way:
            raise ValueError("offsets of another number of classes")
    are_outside = len(views) > 0 and not 0 <= int(views.min()) <= int(views.max()) < len(gallery)
    if are_outside or len(views) != gallery.views.num_videos:
        raise ValueError("views do not match their clips")


def _cannot_be_written(path: Path, error: Exception) -> DmgalError:
    return DmgalError(
        "The gallery cannot be written.",
        received=f"{printable(str(path))}: {error}",
        expected="a writable folder with enough space for the file",
        remedy="Free disk space or choose another --out. An existing gallery is unchanged.",
    )


def _unusable(problem: str, path: Path, received: str, remedy: str) -> DmgalError:
    return DmgalError(
        problem,
        received=f"{printable(str(path))}: {received}",
        expected="a complete file written by 'dmgal enroll'",
        remedy=remedy,
    )
