"""A gallery of actions, enrolled by a few clips each and stored as the states of these clips.

A clip's state does not depend on other clips (see the task boundary in ``recognizer``). Classes are therefore added and
removed without changing the other states, and recognition equals an episode of the same clips. The videos are not
needed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import NoReturn

import torch
from torch import Tensor

from ..backbones.video_state import VideoState
from ..errors import DmgalError
from .galleries.rejection import Rejection
from .listing import listed, printable


@dataclass(frozen=True, eq=False, repr=False)
class Gallery:
    """``S`` enrolled clips of ``n_way`` classes, validated on construction.

    Args:
        class_names: ``(n_way,)``, all different.
        labels: class of each clip, ``(S,)`` int64 in ``0..n_way-1``. Every class has a clip.
        clips: name of each clip, ``(S,)``.
        contents: hash of each clip's file, ``(S,)``, all different, because a clip cannot be enrolled twice.
        states: states of the clips from `FewShotRecognizer.encode`.
        views: states of augmented views of clips that are the only one of their class. They calibrate a threshold.
        view_clips: index of the clip of each view, ``(W,)`` int64.
        made_with: everything that shaped the states, by name: weight hashes, frames, transform.
        rejection: threshold for unknown actions. None: not computed yet.

    Raises:
        DmgalError: there is no class, a name occurs twice, a class has no clip, or a clip is enrolled twice.
    """

    class_names: tuple[str, ...]
    labels: Tensor
    clips: tuple[str, ...]
    contents: tuple[int, ...]
    states: VideoState
    views: VideoState
    view_clips: Tensor
    made_with: Mapping[str, str] = field(default_factory=dict)
    rejection: Rejection | None = None

    def __post_init__(self) -> None:
        if not self.class_names:
            _raise(
                "The gallery has no class.",
                "no class names",
                "at least one class with a clip",
                "Enroll clips of a class.",
            )
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated:
            _raise("Classes have the same name.", listed(repeated), "different names", "Rename one class of each name.")
        empty = [name for name, count in zip(self.class_names, self.shots, strict=True) if not count]
        if empty:
            remedy = "Add clips or omit these classes."
            _raise("Classes have no clip.", listed(empty), "at least one clip of each class", remedy)
        self._refuse_repeated_clips()

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
        refuse_other_model(self.made_with, other.made_with, "The clips to add")
        names = (*self.class_names, *(name for name in other.class_names if name not in self.class_names))
        new_labels = torch.tensor([names.index(name) for name in other.class_names])
        return replace(
            self,
            class_names=names,
            labels=torch.cat([self.labels, new_labels[other.labels]]),
            clips=(*self.clips, *other.clips),
            contents=(*self.contents, *other.contents),
            states=VideoState.cat([self.states, other.states]),
            views=VideoState.cat([self.views, other.views]),
            view_clips=torch.cat([self.view_clips, other.view_clips + len(self)]),
            rejection=None,
        )._without_needless_views()

    def removed(self, class_names: Sequence[str]) -> Gallery:
        """Return the gallery without some of its classes.

        Raises:
            DmgalError: a class is not in the gallery, or no class would remain.
        """
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            expected = f"one of {listed(self.class_names)}"
            _raise("The gallery has no such class.", listed(unknown), expected, "Correct the name.")
        remaining = [label for label, name in enumerate(self.class_names) if name not in class_names]
        if not remaining:
            remedy = "Delete the file instead."
            _raise("Nothing would be left of the gallery.", listed(class_names), "at least one other class", remedy)
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
        )

    def _without_needless_views(self) -> Gallery:
        """Drop the views of classes with several clips, because each of these clips is held out instead."""
        is_needed = torch.isin(self.view_clips, self.single_clips)
        return replace(self, views=self.views.select(is_needed), view_clips=self.view_clips[is_needed])

    def _refuse_repeated_clips(self) -> None:
        first_clips: dict[int, int] = {}
        for clip, content in enumerate(self.contents):
            first = first_clips.setdefault(content, clip)
            if first != clip:
                names = (f"{printable(self.clips[c])} of {printable(self._class_of(c))}" for c in (first, clip))
                _raise(
                    "A clip is enrolled twice.",
                    " and ".join(names) + ", which contain the same bytes",
                    "each clip once, in one class",
                    "Omit one of them.",
                )

    def _class_of(self, clip: int) -> str:
        return self.class_names[int(self.labels[clip])]


def refuse_other_model(gallery: Mapping[str, str], now: Mapping[str, str], what: str) -> None:
    """Raise a DmgalError that names the differences between a gallery's model and the current one, if any.

    Args:
        gallery: ``made_with`` of the gallery.
        now: the same entries of the current model.
        what: subject of the message, such as ``"The run"``.
    """
    names = [name for name in {**gallery, **now} if gallery.get(name) != now.get(name)]
    if names:
        _raise(
            f"{what} and the gallery belong to different models, so their states cannot be compared.",
            "; ".join(f"{name} {now.get(name, 'nothing')}" for name in names),
            "; ".join(f"{name} {gallery.get(name, 'nothing')}" for name in names) + ", as the gallery was made with",
            "Use the run that the gallery was made with, or enroll the clips again with this run.",
        )


def _new_indices(remaining: Tensor, count: int) -> Tensor:
    """Return the new index of each of ``count`` items, -1 for items that are not in ``remaining``."""
    indices = torch.full((count,), -1, dtype=torch.int64)
    indices[remaining] = torch.arange(len(remaining))
    return indices


def _raise(problem: str, received: str, expected: str, remedy: str) -> NoReturn:
    raise DmgalError(problem, received=received, expected=expected, remedy=remedy)
