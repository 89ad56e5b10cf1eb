"""Many names in two arrays instead of a million objects: the bytes of all, and where each ends.

A million paths of 40 characters take 48 MB, a third of what Python's strings take, and processes that load data share
them: reading a Python string counts a reference, which copies its page of memory into every process that looks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

CHUNK = 65_536  # names handled at once: bounds what is needed beside the arrays


class PackedNames(Sequence[str]):
    """A sequence of strings that cannot be changed; equal to any sequence with the same strings.

    Names that a disk holds in no valid UTF-8 are kept as Python gives them (``surrogateescape``), byte by byte.

    Args:
        names: the strings, looked at once.
    """

    __slots__ = ("_bytes", "_ends")

    def __init__(self, names: Iterable[str] = ()) -> None:
        data, lengths, rest = bytearray(), array("q"), iter(names)
        while chunk := list(islice(rest, CHUNK)):
            text = "".join(chunk)
            data += text.encode("utf-8", "surrogateescape")
            lengths.extend(map(len, chunk if text.isascii() else map(_encoded, chunk)))
        self._bytes = np.frombuffer(bytes(data), dtype=np.uint8)
        self._ends = np.cumsum(np.frombuffer(lengths.tobytes(), dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> PackedNames: ...
    def __getitem__(self, place: int | slice) -> str | PackedNames:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        size = len(self)
        if not -size <= place < size:
            raise IndexError(f"name {place} of {size}")
        place %= size
        start = self._ends[place - 1] if place else 0
        return self._bytes[start : self._ends[place]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            ends = self._ends[first : first + CHUNK].tolist()
            start = int(self._ends[first - 1]) if first else 0
            data, offset = self._bytes[start : ends[-1]].tobytes(), start
            for end in ends:
                yield data[start - offset : end - offset].decode("utf-8", "surrogateescape")
                start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedNames):
            return np.array_equal(self._ends, other._ends) and np.array_equal(self._bytes, other._bytes)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list: equal to sequences that hash otherwise

    def __repr__(self) -> str:
        shown = [*self[:2], "..."] if len(self) > 3 else [*self]
        return f"PackedNames({len(self)}: {', '.join(shown)})"

    def take(self, places: np.ndarray) -> PackedNames:
        """The names at these places, ``(K,)`` int, in their order."""
        chosen = PackedNames()
        starts = np.concatenate([np.zeros(1, np.int64), self._ends[:-1]]) if len(self) else self._ends
        lengths = (self._ends - starts)[places]
        parts = [
            self._bytes[_ranges(starts[places[first : first + CHUNK]], lengths[first : first + CHUNK])]
            for first in range(0, len(places), CHUNK)
        ]
        chosen._bytes = np.concatenate(parts) if parts else chosen._bytes
        chosen._ends = np.cumsum(lengths, dtype=np.int64)
        return chosen


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[0] .. starts[0] + lengths[0] - 1``, then the next, and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
