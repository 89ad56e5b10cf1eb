"""Which packets must be decoded to show given frames, found from all packets' headers before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from .packet_kinds import PacketKind


class PacketEntry(NamedTuple):
    """One packet.

    Attributes:
        time: when its frame is shown, in ticks of the stream; None where the file does not say.
        shown: False for what decodes for others' sake only, such as what lies outside an edit list.
        kind: what may be left out around it, or None.
    """

    time: int | None
    shown: bool
    kind: PacketKind | None


class PacketIndex:
    """All packets of a stream, in decoding order.

    Args:
        entries: the packets.
        reorders: the decoder expects to show frames in another order than it decodes them.
    """

    def __init__(self, entries: Iterable[PacketEntry], reorders: bool) -> None:
        self._entries = list(entries)
        shown = [(entry.time, place) for place, entry in enumerate(self._entries) if entry.shown]
        self.num_frames = len(shown)
        times = [time for time, _ in shown if time is not None]
        # Times that never go back under a decoder that reorders are decoding times which a bad muxer passed on.
        self.has_times = len(set(times)) == len(shown) and not (
            reorders and len(times) > 1 and all(a < b for a, b in pairwise(times))
        )
        self._places = [place for _, place in sorted(shown, key=lambda pair: pair[0] or 0)]
        kinds = [entry.kind for entry in self._entries if entry.kind is not None]
        # Parameter sets that change on the way would have to be sent even where their frames are not.
        parameters = {kind.parameters for kind in kinds} - {b""}
        self._may_skip = len(kinds) == len(self._entries) and len(parameters) <= 1
        self._highest_layer = max((kind.layer for kind in kinds), default=0)

    def time(self, index: int) -> int | None:
        """When frame ``index`` is shown."""
        return self._entries[self._places[index]].time

    def shown_times(self, places: Iterable[int]) -> list[int | None]:
        """The times of the frames that the packets at ``places`` show, in the order of showing."""
        entries = (self._entries[place] for place in places)
        return sorted((entry.time for entry in entries if entry.shown), key=lambda time: time or 0)

    def needed(self, indices: Sequence[int]) -> list[int]:
        """Places of the packets that must be decoded, in order, to show the frames at ``indices``."""
        last = sorted({self._places[index] for index in indices})
        if not self._may_skip:
            return list(range(last[-1] + 1))
        # The first packet always goes: in it encoders sign their work, and decoders know some for their mistakes.
        needed, sent = [0], 0
        for place in last:
            if place == sent:
                continue
            between = self._since_restart(sent + 1, place)
            needed += [other for other in between if not self._is_disposable(other)] + [place]
            sent = place
        return needed

    def _since_restart(self, begin: int, place: int) -> range:
        """What lies between ``begin`` and ``place`` and behind the last restart; ``place`` itself may be one."""
        for other in range(place, begin - 1, -1):
            kind = self._entries[other].kind
            if kind is not None and kind.restart:
                return range(other, place)
        return range(begin, place)

    def _is_disposable(self, place: int) -> bool:
        kind = self._entries[place].kind
        return kind is not None and kind.disposable and kind.layer == self._highest_layer
