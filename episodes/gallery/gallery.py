"""A gallery of actions, enrolled by a few clips each and stored as the states of these clips in a safetensors file.

The names of the classes may be stored as text features, beside the clips or alone (zero-shot).

A clip's state does not depend on other clips (see the task boundary in ``recognizer``). Classes are therefore added and
removed without changing the other states, and recognition equals an episode of the same clips. The file has tensors
(``state.NAME`` of the clips, ``view.NAME`` of augmented views, ``labels``, ``view_clips``), JSON metadata and a
checksum over both, which is verified on reading. A process that changes a gallery holds the lock ``.NAME.lock`` beside
it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ... import __version__
from ...backbones.text import ClassTexts
from ...errors import DmgalError, differences, refuse_differences
from ...files import atomic_write, exclusively, listed, open_regular, parse_json, printable, reason
from ..evaluation.states import PrecomputedStates, with_prefix
from .task import Rejection
from .texts import added_texts, texts_as_json, texts_of_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Gallery:
    """``S`` enrolled clips of ``n_way`` classes, validated on construction.

    Args:
        class_names: ``(n_way,)``, all different.
        labels: class of each clip, ``(S,)`` int64 in ``0..n_way-1``. Every class has a clip, or none has one.
        clips: name of each clip, ``(S,)``.
        contents: hash of each clip's file, ``(S,)``, all different, because a clip cannot be enrolled twice.
        states: states of the clips from `precompute_states`.
        views: states of augmented views of clips that are the only one of their class. They calibrate a threshold.
        view_clips: index of the clip of each view, ``(W,)`` int64.
        made_with: everything that shaped the states, by name: weight hashes, frames, transform.
        rejection: threshold for unknown actions. None: not computed yet.
        texts: text features of the classes. None: clips alone.
        model: options that load the model again. Empty if they are unknown.

    Raises:
        DmgalError: there is no class, a name occurs twice, a class has no clip (unless the gallery has texts and no
            clips at all), or a clip is enrolled twice.
    """

    class_names: tuple[str, ...]
    labels: Tensor
    clips: tuple[str, ...]
    contents: tuple[int, ...]
    states: PrecomputedStates
    views: PrecomputedStates
    view_clips: Tensor
    made_with: Mapping[str, str] = field(default_factory=dict)
    rejection: Rejection | None = None
    texts: ClassTexts | None = None
    model: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.class_names:
            raise DmgalError(
                "The gallery has no class.",
                received="no class names",
                expected="at least one class with a clip",
                remedy="Enroll clips of a class.",
            )
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated:
            raise DmgalError(
                "Classes have the same name.",
                received=listed(repeated),
                expected="different names",
                remedy="Rename one class of each name.",
            )
        empty = [name for name, count in zip(self.class_names, self.shots, strict=True) if not count]
        if empty and (self.texts is None or len(self)):
            raise DmgalError(
                "Classes have no clip.",
                received=listed(empty),
                expected="at least one clip of each class",
                remedy="Add clips or omit these classes.",
            )
        self._check_contents()

    def __len__(self) -> int:
        """Return ``S``."""
        return len(self.clips)

    def __repr__(self) -> str:
        return f"Gallery(classes={self.n_way}, clips={len(self)}, views={len(self.view_clips)})"

    @property
    def n_way(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shots(self) -> tuple[int, ...]:
        """The number of clips of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.n_way).tolist())

    @property
    def single_clips(self) -> Tensor:
        """Indices of the clips that are the only one of their class, ``(n,)``."""
        return (torch.tensor(self.shots)[self.labels] == 1).nonzero().flatten()

    def added(self, other: Gallery) -> Gallery:
        """Return a gallery with the clips of another gallery appended. Shared classes get the clips of both.

        Raises:
            DmgalError: another model made it (the error names the differences), or a clip is in both.
        """
        self.check_model(other.made_with, "The clips to add")
        texts = added_texts(self.texts, other.texts, bool(len(self)) == bool(len(other)))
        names = (*self.class_names, *(name for name in other.class_names if name not in self.class_names))
        new_labels = torch.tensor([names.index(name) for name in other.class_names])
        return replace(
            self,
            class_names=names,
            labels=torch.cat([self.labels, new_labels[other.labels]]),
            clips=(*self.clips, *other.clips),
            contents=(*self.contents, *other.contents),
            states=PrecomputedStates.cat([self.states, other.states]),
            views=PrecomputedStates.cat([self.views, other.views]),
            view_clips=torch.cat([self.view_clips, other.view_clips + len(self)]),
            rejection=None,
            texts=texts,
        )._without_needless_views()

    def check_model(self, made_with: Mapping[str, str], what: str = "The run") -> None:
        """Raise a DmgalError that names the differences if another model made this gallery.

        Args:
            made_with: description of the current model.
            what: subject of the message.
        """
        refuse_differences(
            differences(self.made_with, made_with),
            f"{what} and the gallery belong to different models, so their states cannot be compared.",
            "Use the run that the gallery was made with, or enroll the clips again with this run.",
        )

    def removed(self, class_names: Sequence[str]) -> Gallery:
        """Return the gallery without some of its classes.

        Raises:
            DmgalError: a class is not in the gallery, or no class would remain.
        """
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            raise DmgalError(
                "The gallery has no such class.",
                received=listed(unknown),
                expected=f"one of {listed(self.class_names)}",
                remedy="Correct the name.",
            )
        remaining = [label for label, name in enumerate(self.class_names) if name not in class_names]
        if not remaining:
            raise DmgalError(
                "Nothing would be left of the gallery.",
                received=listed(class_names),
                expected="at least one other class",
                remedy="Delete the file instead.",
            )
        new_labels = _new_indices(torch.tensor(remaining), self.n_way)
        clip_mask = torch.isin(self.labels, torch.tensor(remaining))
        new_clips = _new_indices(clip_mask.nonzero().flatten(), len(self))
        view_mask = new_clips[self.view_clips] >= 0
        return replace(
            self,
            class_names=tuple(self.class_names[label] for label in remaining),
            labels=new_labels[self.labels[clip_mask]],
            clips=tuple(compress(self.clips, clip_mask.tolist())),
            contents=tuple(compress(self.contents, clip_mask.tolist())),
            states=self.states.select(clip_mask),
            views=self.views.select(view_mask),
            view_clips=new_clips[self.view_clips[view_mask]],
            rejection=None,
            texts=self.texts and self.texts.select([self.class_names[label] for label in remaining]),
        )

    def _without_needless_views(self) -> Gallery:
        """Drop the views of classes with several clips, because each of these clips is held out instead."""
        is_needed = torch.isin(self.view_clips, self.single_clips)
        return replace(self, views=self.views.select(is_needed), view_clips=self.view_clips[is_needed])

    def _check_contents(self) -> None:
        first_clips: dict[int, int] = {}
        for clip, content in enumerate(self.contents):
            first = first_clips.setdefault(content, clip)
            if first != clip:
                names = (f"{printable(self.clips[c])} of {printable(self._class_of(c))}" for c in (first, clip))
                raise DmgalError(
                    "A clip is enrolled twice.",
                    received=" and ".join(names) + ", which contain the same bytes",
                    expected="each clip once, in one class",
                    remedy="Omit one of them.",
                )

    def _class_of(self, clip: int) -> str:
        return self.class_names[int(self.labels[clip])]


def _new_indices(remaining: Tensor, count: int) -> Tensor:
    """Return the new index of each of ``count`` items, -1 for items that are not in ``remaining``."""
    indices = torch.full((count,), -1, dtype=torch.int64)
    indices[remaining] = torch.arange(len(remaining))
    return indices


FORMAT, FORMAT_WITH_TEXTS = 1, 2


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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(
        {
            "format": FORMAT if gallery.texts is None else FORMAT_WITH_TEXTS,
            "texts": gallery.texts and texts_as_json(gallery.texts),
            "class_names": gallery.class_names,
            "clips": gallery.clips,
            "contents": [f"{content:016x}" for content in gallery.contents],
            "made_with": dict(gallery.made_with),
            "rejection": None if gallery.rejection is None else asdict(gallery.rejection),
            "model": dict(gallery.model),
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
        if content["format"] in (FORMAT, FORMAT_WITH_TEXTS):
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
    texts = content.get("texts") if content["format"] == FORMAT_WITH_TEXTS else None
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
        texts=texts and texts_of_file(texts, tensors["texts"], tuple(content["class_names"])),
        model=dict(content.get("model", {})),  # earlier versions wrote none
    )
    counts = {len(gallery.labels), len(gallery.clips), len(gallery.contents), gallery.states.num_videos}
    texts = (*gallery.class_names, *gallery.clips, *gallery.made_with, *gallery.made_with.values())
    views = gallery.view_clips
    model = [text for option in gallery.model.items() for text in option if text is not None]
    if any(indices.dtype != torch.int64 or indices.dim() != 1 for indices in (gallery.labels, gallery.view_clips)):
        raise ValueError("labels or views that are no list of numbers")
    for states in (gallery.states, gallery.views):
        if any(tensor.shape[0] != states.num_videos for tensor in states.tensors().values()):
            raise ValueError("states of different numbers of clips")
    if len(counts) > 1 or not all(isinstance(text, str) for text in (*texts, *model)):
        raise ValueError("labels, clips and states do not match")
    if len(views) != gallery.views.num_videos or (
        len(views) and not 0 <= int(views.min()) <= int(views.max()) < len(gallery)
    ):
        raise ValueError("views do not match their clips")
    return gallery


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
