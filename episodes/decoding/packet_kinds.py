"""Dependencies between compressed packets, read from their first bytes without decoding.

Only guarantees of the standards are used, so that skipping packets cannot change a frame: ITU-T H.264 7.4.1
(``nal_ref_idc``, IDR pictures), ITU-T H.265 7.4.2.2 (sub-layer non-reference pictures, IDR pictures), RFC 6386 9.1
(VP8), and the VP9 bitstream specification 7.2. Recovery points and the clean random access of open GOPs guarantee
less, so they count as ordinary frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple


class PacketKind(NamedTuple):
    """Properties of one packet that decide which packets may be skipped.

    Attributes:
        restart: neither this packet nor later ones in decoding order depend on earlier packets.
        disposable: no frame depends on it, except frames of a higher ``layer``.
        hidden: it gives no frame and is decoded only for other packets.
        layer: temporal layer.
        parameters: parameter sets in it, which later packets may need.
    """

    restart: bool = False
    disposable: bool = False
    hidden: bool = False
    layer: int = 0
    parameters: bytes = b""


KindReader = Callable[[memoryview], PacketKind | None]
"""Function from a packet's bytes to its kind, or to None if they are not understood and nothing may be skipped."""

ORDINARY = PacketKind()


def kind_reader(codec: str, extradata: bytes) -> KindReader:
    """Return the reader of packet kinds for one stream.

    Args:
        codec: FFmpeg's name of the codec. All packets of an unknown codec are ordinary.
        extradata: the codec's configuration from the file's header.
    """
    if codec == "h264" and len(extradata) > 4 and extradata[0] == 1:
        return lambda data: _h264(data, (extradata[4] & 3) + 1)
    if codec == "hevc" and len(extradata) > 21 and extradata[0] == 1:
        return lambda data: _hevc(data, (extradata[21] & 3) + 1)
    return {"vp8": _vp8, "vp9": _vp9}.get(codec, lambda data: ORDINARY)


def _units(data: memoryview, length_size: int) -> Iterator[memoryview]:
    """Yield the NAL units of a packet, each stored after its length. Yield an empty one if a length is invalid."""
    start, end = 0, len(data)
    while start < end:
        length = int.from_bytes(data[start : start + length_size])
        start += length_size
        unit = data[start : start + length] if length <= end - start else data[:0]
        yield unit
        if not unit:
            return
        start += length


def _h264(data: memoryview, length_size: int) -> PacketKind | None:
    slices, parameters = [], b""
    for unit in _units(data, length_size):
        if not unit:
            return None
        kind = unit[0] & 31
        if kind in (1, 5):  # slices of one picture; data partitions (2 to 4) are not analyzed
            slices.append(unit[0] & 127)
        elif kind in (7, 8, 13):
            parameters += bytes(unit)
        elif kind not in (6, 9, 10, 11, 12):
            return None
    if not slices:
        return None
    return PacketKind(
        restart=all(header & 31 == 5 for header in slices),
        disposable=not any(header >> 5 for header in slices),
        parameters=parameters,
    )


def _hevc(data: memoryview, length_size: int) -> PacketKind | None:
    slices, layers, parameters = [], set(), b""
    for unit in _units(data, length_size):
        if len(unit) < 2 or unit[0] & 1 or unit[1] >> 3:  # another view or quality layer
            return None
        kind = unit[0] >> 1
        if kind < 32:
            slices.append(kind)
            layers.add((unit[1] & 7) - 1)
        elif kind in (32, 33, 34):
            parameters += bytes(unit)
        elif kind > 40:
            return None
    if len(layers) != 1:
        return None
    return PacketKind(
        restart=all(kind in (19, 20) for kind in slices),
        disposable=all(kind < 15 and kind % 2 == 0 for kind in slices),
        layer=layers.pop(),
        parameters=parameters,
    )


def _vp8(data: memoryview) -> PacketKind | None:
    if not data:
        return None
    return PacketKind(restart=not data[0] & 1, hidden=not data[0] >> 4 & 1)


def _vp9(data: memoryview) -> PacketKind | None:
    if not data or data[0] >> 6 != 2:
        return None
    # In profile 3 (bits 4 and 5) a reserved bit shifts the others. Key frames of this profile are not detected.
    return PacketKind(restart=data[0] & 0b110000 != 0b110000 and not data[0] & 0b1100)
