"""Clips of other actions beside a gallery, which together are an extra class "other"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import DmgalError
from ...files import listed
from ...names import comparable
from ..evaluation.states import PrecomputedStates, with_prefix


@dataclass(frozen=True, eq=False)
class Negatives:
    """``N`` clips of actions that are none of the enrolled ones.

    Attributes:
        class_names: names of their classes, ``(M,)``.
        labels: class of each clip, ``(N,)`` int64 in ``0..M-1``.
        contents: hash of each clip's file, ``(N,)``.
        states: states of the clips from `precompute_states`.
    """

    class_names: tuple[str, ...]
    labels: Tensor
    contents: tuple[int, ...]
    states: PrecomputedStates

    def __len__(self) -> int:
        """Return ``N``."""
        return len(self.labels)

    def to(self, device: torch.device) -> Negatives:
        """Return the negatives on a device."""
        return replace(self, labels=self.labels.to(device), states=self.states.to(device))

    def check_no_overlap(self, class_names: Sequence[str], contents: Sequence[int]) -> None:
        """Raise a DmgalError if enrolled classes or clips are among the negatives.

        Args:
            class_names: names of the enrolled classes. Names that differ only in case or blanks are the same.
            contents: hashes of the enrolled clips.
        """
        enrolled = {comparable(name) for name in class_names}
        shared = [name for name in self.class_names if comparable(name) in enrolled]
        num_clips = len({*self.contents} & {*contents})
        if shared or num_clips:
            clips = f"{num_clips} clip{'s' * (num_clips > 1)} with the same bytes"
            raise DmgalError(
                "Negatives are enrolled as an action.",
                received=f"the classes {listed(shared)}" if shared else clips,
                expected="clips of actions that are none of the enrolled ones",
                remedy="Remove them from the folder of negatives, or enroll them in another gallery.",
            )

    def as_json(self) -> dict[str, list[str]]:
        """Return all fields but the tensors."""
        return {"class_names": list(self.class_names), "contents": [f"{content:016x}" for content in self.contents]}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        states = {f"negative.{name}": tensor for name, tensor in self.states.tensors().items()}
        return {**states, "negative_labels": self.labels}

    @classmethod
    def of_file(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Negatives:
        """Return the negatives of a file. A forged one raises a ValueError, LookupError or TypeError."""
        names, labels = tuple(content["class_names"]), tensors["negative_labels"]
        contents = tuple(int(value, 16) for value in content["contents"])
        states = PrecomputedStates.from_tensors(with_prefix(tensors, "negative."))
        counts = {len(contents), labels.numel(), *(len(tensor) for tensor in states.tensors().values())}
        is_valid = labels.dtype == torch.int64 and labels.dim() == 1 and len(labels) and len(counts) == 1
        if not is_valid or not all(isinstance(name, str) for name in names):
            raise ValueError("negatives that do not match their states")
        if labels.unique().tolist() != list(range(len(names))):
            raise ValueError("negatives without a class, or classes without negatives")
        return cls(names, labels, contents, states)
