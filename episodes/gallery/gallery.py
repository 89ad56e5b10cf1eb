"""A gallery of actions, enrolled by a few clips each and stored as the states of these clips in a safetensors file.

The names of the classes may be stored as text features, beside the clips or alone (zero-shot). Clips of other actions
may be stored as negatives.

A clip's state does not depend on other clips (see the task boundary in ``recognizer``). Classes are therefore added and
removed without changing the other states, and recognition equals an episode of the same clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import torch
from torch import Tensor

from ...backbones.text import ClassTexts
from ...errors import DmgalError, differences, refuse_differences
from ...files import listed, printable
from ..evaluation.states import PrecomputedStates
from .negatives import Negatives
from .task import Rejection
from .texts import added_texts


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
        negatives: clips of other actions. They make the rejection of unknown actions stricter, and no answer changes.

    Raises:
        DmgalError: there is no class, a name occurs twice, a class has no clip (unless the gallery has texts and no
            clips at all), a clip is enrolled twice, or negatives are enrolled or have no clips beside them.
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
    negatives: Negatives | None = None

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
        if self.negatives is not None:
            self._check_negatives(self.negatives)

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

    def _check_negatives(self, negatives: Negatives) -> None:
        if self.texts is not None:
            raise DmgalError(
                "A gallery with text takes no negatives.",
                received=f"{len(negatives)} negatives, and the text of class names",
                expected="clips alone",
                remedy="Enroll without --negatives, or without --name and --text.use.",
            )
        negatives.check_no_overlap(self.class_names, self.contents)

    def _class_of(self, clip: int) -> str:
        return self.class_names[int(self.labels[clip])]


def _new_indices(remaining: Tensor, count: int) -> Tensor:
    """Return the new index of each of ``count`` items, -1 for items that are not in ``remaining``."""
    indices = torch.full((count,), -1, dtype=torch.int64)
    indices[remaining] = torch.arange(len(remaining))
    return indices
