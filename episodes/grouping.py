"""Episodes in which support and query never show the same group, such as one person, sequence or place.

Groups may span classes. Every group of an episode is on one side, for all of its classes, so that a query cannot be
recognized by a person or a background that its support videos show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import DmgalError
from ..files import listed

ORDERS = 200
"""Number of random orders of the groups that are tried before an episode counts as impossible."""
Videos = np.ndarray


class Grouping:
    """Division of the groups of an episode into those of the support and those of the queries.

    Args:
        groups: group of every video, ``(V,)``, any values that can be compared.
        num_videos: number of videos ``V``.
        k_shot, n_query: support and query videos per class.
        name: returns the name of a class, for error messages.

    Raises:
        DmgalError: the number of groups is not the number of videos.
    """

    def __init__(
        self,
        groups: Sequence[object] | np.ndarray,
        num_videos: int,
        k_shot: int,
        n_query: int,
        name: Callable[[int], str],
    ) -> None:
        if len(groups) != num_videos:
            raise DmgalError(
                "Each video needs a group.",
                received=f"{len(groups)} groups of {num_videos} videos",
                expected="one group for each video",
                remedy="Pass the groups in the order of the labels.",
            )
        self._groups = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        self._k_shot, self._n_query, self._name = k_shot, n_query, name

    def check(self, videos_of: dict[int, Videos], classes: Sequence[int]) -> None:
        """Raise a DmgalError that names the classes whose groups cannot be divided, each class for itself."""
        impossible = [c for c in classes if not self._can_divide(np.bincount(self._groups[videos_of[c]]))]
        if impossible:
            raise self._impossible([self._described(c, videos_of[c]) for c in impossible])

    def sides(
        self, classes: Sequence[int], videos: Sequence[Videos], generator: torch.Generator
    ) -> list[tuple[Videos, Videos]]:
        """Return the support candidates and the query candidates of each class.

        The groups are visited in random order. A group moves to the queries if a class that lacks query videos has some
        of this group, and every class retains enough support videos.

        Raises:
            DmgalError: no division was found, because the classes share their groups.
        """
        present, counts = self._counts(videos)
        for _ in range(ORDERS):
            is_query = self._divide(counts, torch.randperm(len(present), generator=generator).tolist())
            if is_query is not None:
                of_query = [np.isin(self._groups[one], present[is_query]) for one in videos]
                return [(one[~mask], one[mask]) for one, mask in zip(videos, of_query, strict=True)]
        in_order = sorted(zip(classes, videos, strict=True), key=lambda pair: pair[0])
        raise self._impossible([self._described(c, one) for c, one in in_order])

    def _counts(self, videos: Sequence[Videos]) -> tuple[np.ndarray, np.ndarray]:
        """Return the groups of an episode's classes ``(G,)``, and the number of videos of each class ``(n_way,G)``."""
        groups = [self._groups[one] for one in videos]
        present, columns = np.unique(np.concatenate(groups), return_inverse=True)
        counts = np.zeros((len(videos), len(present)), dtype=np.int64)
        rows = np.repeat(np.arange(len(videos)), [len(one) for one in groups])
        np.add.at(counts, (rows, columns.reshape(-1)), 1)
        return present, counts

    def _divide(self, counts: np.ndarray, order: list[int]) -> np.ndarray | None:
        """Return a mask of the query groups ``(G,)``, or None if this order does not lead to a division."""
        support, query = counts.sum(axis=1), np.zeros(len(counts), dtype=np.int64)
        is_query = np.zeros(counts.shape[1], dtype=bool)
        for group in order:
            of_group = counts[:, group]
            is_lacking = query < self._n_query
            if not is_lacking.any():
                break
            if (of_group[is_lacking] > 0).any() and (support - of_group >= self._k_shot).all():
                is_query[group] = True
                support, query = support - of_group, query + of_group
        return is_query if (query >= self._n_query).all() else None

    def _can_divide(self, sizes: np.ndarray) -> bool:
        """Return True if some groups have ``n_query`` videos and the others ``k_shot``, given the sizes of all."""
        sizes = np.sort(sizes[sizes > 0])
        total, fewest = int(sizes.sum()), sizes.cumsum()
        enough = fewest[fewest >= self._n_query]
        if len(enough) and total - int(enough[0]) >= self._k_shot:
            return True
        sums = 1  # bit n is set if some groups have n videos together
        for size in sizes.tolist():
            sums |= sums << size
        return any(sums >> number & 1 for number in range(self._n_query, total - self._k_shot + 1))

    def _described(self, class_index: int, videos: Videos) -> str:
        count = len(np.unique(self._groups[videos]))
        return f"{self._name(class_index)} with {len(videos)} videos of {count} group{'s' if count != 1 else ''}"

    def _impossible(self, classes: list[str]) -> DmgalError:
        return DmgalError(
            "Support and query cannot be of different groups.",
            received=listed(classes),
            expected=f"in every class of a task {self._k_shot} support video(s) of some groups and {self._n_query} "
            "query video(s) of others, with each group on one side for all classes",
            remedy="Lower the shots or queries, use classes with more groups, or remove data.group.",
        )
