"""A gallery: actions enrolled by a few clips each, kept as the states of these clips; no video is needed again.

A clip's state knows nothing of other clips (see the task boundary in ``recognizer``), so classes come and go without
touching the states of the rest, and recognition gives what an episode of the same clips would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from torch import Tensor

from ..backbones.video_state import VideoState
from ..errors import DmgalError
from .galleries.rejection import Rejection
from .listing import listed, printable


@dataclass(frozen=True, eq=False, repr=False)
class Gallery:
    """The enrolled clips, ``S`` of them, of ``n_way`` classes. It is checked when it is made.

    Args:
        class_names: ``(n_way,)``, all different.
        labels: class of each clip, ``(S,)`` int64 in ``0..n_way-1``; every class has a clip.
        clips: name of each clip, ``(S,)``.
        contents: hash of each clip's file, ``(S,)``, all different: a clip cannot be enrolled twice.
        states: of the clips, what `FewShotRecognizer.encode` gave.
        views: states of augmented views of clips that are the only one of their class; a threshold is found by them.
        view_clips: which clip each view is of, ``(W,)`` int64.
        made_with: what shaped the states, by name: weights by their hash, frames, transform.
        rejection: how unknown actions are told; None where that was not found out yet.

    Raises:
        DmgalError: no class, a name given twice, a class without a clip, or a clip enrolled twice.
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
            _refuse("A gallery has no class.", "nothing", "at least one class with a clip", "enroll clips of a class")
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated:
            _refuse("Classes have the same name.", listed(repeated), "names that differ", "rename one of each")
        empty = [name for name, count in zip(self.class_names, self.shots, strict=True) if not count]
        if empty:
            remedy = "add clips, or leave these classes out"
            _refuse("Classes have no clip.", listed(empty), "at least one clip of each class", remedy)
        self._refuse_repeated_clips()

    def __len__(self) -> int:
        """``S``."""
        return len(self.clips)

    def __repr__(self) -> str:
        return f"Gallery(classes={self.n_way}, clips={len(self)}, views={len(self.view_clips)})"

    @property
    def n_way(self) -> int:
        return len(self.class_names)

    @property
    def shots(self) -> tuple[int, ...]:
        """Clips of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.n_way).tolist())

    @property
    def single_clips(self) -> Tensor:
        """The clips that are the only ones of their class, ``(n,)``."""
        return (torch.tensor(self.shots)[self.labels] == 1).nonzero().flatten()

    def added(self, other: Gallery) -> Gallery:
        """With the clips of another gallery behind its own; a class that both have gets the clips of both.

        Raises:
            DmgalError: another model made it (what differs is named), or a clip is in both.
        """
        refuse_other_model(self.made_with, other.made_with, "The clips to add")
        names = (*self.class_names, *(name for name in other.class_names if name not in self.class_names))
        renumbered = torch.tensor([names.index(name) for name in other.class_names])
        return replace(
            self,
            class_names=names,
            labels=torch.cat([self.labels, renumbered[other.labels]]),
            clips=(*self.clips, *other.clips),
            contents=(*self.contents, *other.contents),
            states=VideoState.cat([self.states, other.states]),
            views=VideoState.cat([self.views, other.views]),
            view_clips=torch.cat([self.view_clips, other.view_clips + len(self)]),
            rejection=None,
        )._without_needless_views()

    def removed(self, class_names: Sequence[str]) -> Gallery:
        """Without some of its classes.

        Raises:
            DmgalError: a class that it does not have, or all that it has.
        """
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            known = listed(self.class_names)
            _refuse("The gallery has no such class.", listed(unknown), f"among {known}", "mend the name")
        kept_classes = [label for label, name in enumerate(self.class_names) if name not in class_names]
        if not kept_classes:
            remedy = "delete the file instead"
            _refuse("Nothing would be left of the gallery.", listed(class_names), "a class that stays", remedy)
        new_label, kept = (
            _renumbered(torch.tensor(kept_classes), self.n_way),
            torch.isin(self.labels, torch.tensor(kept_classes)),
        )
        new_place = _renumbered(kept.nonzero().flatten(), len(self))
        kept_views = new_place[self.view_clips] >= 0
        return replace(
            self,
            class_names=tuple(self.class_names[label] for label in kept_classes),
            labels=new_label[self.labels[kept]],
            clips=_where(self.clips, kept),
            contents=_where(self.contents, kept),
            states=self.states.select(kept),
            views=self.views.select(kept_views),
            view_clips=new_place[self.view_clips[kept_views]],
            rejection=None,
        )

    def _without_needless_views(self) -> Gallery:
        """Views are of no use where a class has several clips: each of these is held out in turn."""
        kept = torch.isin(self.view_clips, self.single_clips)
        return replace(self, views=self.views.select(kept), view_clips=self.view_clips[kept])

    def _refuse_repeated_clips(self) -> None:
        first: dict[int, int] = {}
        for place, content in enumerate(self.contents):
            other = first.setdefault(content, place)
            if other != place:
                names = (f"{printable(self.clips[p])} of {printable(self._class_of(p))}" for p in (other, place))
                _refuse(
                    "A clip is enrolled twice.",
                    " and ".join(names) + ", which hold the same bytes",
                    "each clip once, in one class",
                    "leave one of them out",
                )

    def _class_of(self, clip: int) -> str:
        return self.class_names[int(self.labels[clip])]


def refuse_other_model(gallery: Mapping[str, str], now: Mapping[str, str], what: str) -> None:
    """DmgalError that names what differs between the model of a gallery and the one at hand, if anything does."""
    names = [name for name in {**gallery, **now} if gallery.get(name) != now.get(name)]
    if names:
        _refuse(
            f"{what} and the gallery belong to different models: their states cannot be compared.",
            "; ".join(f"{name} {now.get(name, 'nothing')}" for name in names),
            "; ".join(f"{name} {gallery.get(name, 'nothing')}" for name in names) + ", as the gallery was made with",
            "use the run that the gallery was made with, or enroll the clips anew with this run",
        )


def _renumbered(kept: Tensor, count: int) -> Tensor:
    """New number of each of ``count`` things, -1 for what is not kept."""
    numbers = torch.full((count,), -1, dtype=torch.int64)
    numbers[kept] = torch.arange(len(kept))
    return numbers


def _where(values: tuple, kept: Tensor) -> tuple:  # type: ignore[type-arg]
    return tuple(value for value, is_kept in zip(values, kept.tolist(), strict=True) if is_kept)


def _refuse(failed: str, received: str, expected: str, remedy: str) -> NoReturn:
    raise DmgalError(failed, received=received, expected=expected, remedy=remedy)
