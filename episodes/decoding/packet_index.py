"""Choice of the packets to decode for given frames, from the headers of all packets and before decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from .packet_kinds import PacketKind


class PacketEntry(NamedTuple):
    """One packet of a stream.

    Attributes:
        time: presentation time of its frame in ticks of the stream, or None if the file has no times.
        shown: False if the packet is decoded only for other frames, for example outside an edit list.
        kind: what may be skipped around it, or None if unknown.
    """

    time: int | None
    shown: bool
    kind: PacketKind | None


class PacketIndex:
    """Index of all packets of a stream, in decoding order.

    Args:
        entries: the packets.
        reorders: True if the decoder expects a presentation order that differs from the decoding order.
    """

    def __init__(self, entries: Iterable[PacketEntry], reorders: bool) -> None:
        self._entries = list(entries)
        shown = [(entry.time, position) for position, entry in enumerate(self._entries) if entry.shown]
        self.num_frames = len(shown)
        times = [time for time, _ in shown if time is not None]
        # If the decoder reorders, ever-increasing times are decoding times written by a faulty muxer.
        self.has_times = len(set(times)) == len(shown) and not (
            reorders and len(times) > 1 and all(a < b for a, b in pairwise(times))
        )
        self._packet_positions = [position for _, position in sorted(shown, key=lambda pair: pair[0] or 0)]
        kinds = [entry.kind for entry in self._entries if entry.kind is not None]
        # If parameter sets change, they would have to be sent even when their frames are skipped.
        parameters = {kind.parameters for kind in kinds} - {b""}
        self._may_skip = len(kinds) == len(self._entries) and len(parameters) <= 1
        self._highest_layer = max((kind.layer for kind in kinds), default=0)

    def time(self, index: int) -> int | None:
        """Return the presentation time of frame ``index``."""
        return self._entries[self._packet_positions[index]].time

    def shown_times(self, places: Iterable[int]) -> list[int | None]:
        """Return the sorted presentation times of the frames in the packets at the positions ``places``."""
        entries = (self._entries[position] for position in places)
        return sorted((entry.time for entry in entries if entry.shown), key=lambda time: time or 0)

    def needed(self, indices: Sequence[int]) -> list[int]:
        """Return the positions of the packets that must be decoded, in order, to get the frames at ``indices``."""
        wanted = sorted({self._packet_positions[index] for index in indices})
        if not self._may_skip:
            return list(range(wanted[-1] + 1))
        # The first packet is always sent: it names the encoder, and decoders work around known encoder bugs.
        needed, sent = [0], 0
        for position in wanted:
            if position == sent:
                continue
            between = self._since_restart(sent + 1, position)
            needed += [other for other in between if not self._is_disposable(other)] + [position]
            sent = position
        return needed

    def _since_restart(self, begin: int, position: int) -> range:
        """Return the positions from the last restart, or else ``begin``, up to ``position``, which may be a restart."""
        for other in range(position, begin - 1, -1):
            kind = self._entries[other].kind
            if kind is not None and kind.restart:
                return range(other, position)
        return range(begin, position)

    def _is_disposable(self, position: int) -> bool:
        kind = self._entries[position].kind
        return kind is not None and kind.disposable and kind.layer == self._highest_layer
