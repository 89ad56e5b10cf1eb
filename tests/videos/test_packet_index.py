"""Tests of skipping packets, on packets written byte by byte and without decoding."""

from __future__ import annotations

import pytest

from dmgal.videos.decoding.packets import ORDINARY, PacketEntry, PacketIndex, PacketKind, kind_reader

AVCC = bytes([1, 100, 0, 10, 0xFF])  # lengths of four bytes
HVCC = bytes([1] + [0] * 20 + [3])


def units(*contents: bytes) -> memoryview:
    return memoryview(b"".join(len(content).to_bytes(4, "big") + content for content in contents))


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (units(b"\x65a"), PacketKind(restart=True)),
        (units(b"\x06a", b"\x65a", b"\x65b"), PacketKind(restart=True)),
        (units(b"\x67s", b"\x68p", b"\x65a"), PacketKind(restart=True, parameters=b"\x67s\x68p")),
        (units(b"\x41a"), ORDINARY),
        (units(b"\x61a"), ORDINARY),  # an I-picture of an open group is not a restart
        (units(b"\x01a", b"\x01b"), PacketKind(disposable=True)),
        (units(b"\x01a", b"\x41b"), ORDINARY),
        (units(b"\x02a"), None),  # data partitions
        (units(b"\x74a", b"\x65a"), None),  # a second view
        (units(b"\x06a"), None),  # no picture
        (memoryview(b"\0\0\0\x09\x65a"), None),  # longer than its packet
        (memoryview(b"\0\0\0\0"), None),
        (memoryview(b"\0\0"), None),
    ],
)
def test_h264(packet, kind):
    assert kind_reader("h264", AVCC)(packet) == kind


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (units(b"\x26\x01a"), PacketKind(restart=True)),  # IDR
        (units(b"\x2a\x01a"), ORDINARY),  # clean random access: open groups
        (units(b"\x02\x01a"), ORDINARY),  # a trailing reference picture
        (units(b"\x00\x01a"), PacketKind(disposable=True)),
        (units(b"\x00\x03a"), PacketKind(disposable=True, layer=2)),
        (units(b"\x44\x01p", b"\x02\x01a"), PacketKind(parameters=b"\x44\x01p")),
        (units(b"\x02\x09a"), None),  # another quality layer
        (units(b"\x02"), None),
    ],
)
def test_hevc(packet, kind):
    assert kind_reader("hevc", HVCC)(packet) == kind


@pytest.mark.parametrize(
    ("codec", "packet", "kind"),
    [
        ("vp8", b"\x10", PacketKind(restart=True)),
        ("vp8", b"\x11", ORDINARY),
        ("vp8", b"\x01", PacketKind(hidden=True)),
        ("vp8", b"", None),
        ("vp9", b"\x82", PacketKind(restart=True)),
        ("vp9", b"\x86", ORDINARY),
        ("vp9", b"\x88", ORDINARY),  # repeats a frame
        ("vp9", b"\xb0", ORDINARY),
        ("vp9", b"\x02", None),
        ("mpeg4", b"\x00", ORDINARY),
        ("h264", b"\x00\x00\x01\x65", ORDINARY),  # without a header that gives the size of lengths
    ],
)
def test_other_codecs(codec, packet, kind):
    assert kind_reader(codec, b"")(memoryview(packet)) == kind


RESTART, NEEDED, SPARE = PacketKind(restart=True), ORDINARY, PacketKind(disposable=True)
# Two groups in decoding order, I P b b P b b, with presentation times.
GROUP = [(0, RESTART), (3, NEEDED), (1, SPARE), (2, SPARE), (6, NEEDED), (4, SPARE), (5, SPARE)]
TWO_GROUPS = GROUP + [(time + 7, kind) for time, kind in GROUP]


def index(packets, reorders: bool = True) -> PacketIndex:
    return PacketIndex([PacketEntry(time, True, kind) for time, kind in packets], reorders)


def test_disposable_frames_and_groups_are_skipped():
    plan = index(TWO_GROUPS)
    assert plan.num_frames == 14 and plan.has_times
    assert plan.needed([0]) == [0]
    assert plan.needed([2]) == [0, 1, 3]
    assert plan.needed([5]) == [0, 1, 4, 6]
    assert plan.needed([8]) == [0, 7, 8, 9]  # the first packet is always sent
    assert plan.needed([12, 2, 1]) == [0, 1, 2, 3, 7, 8, 11, 13]
    assert plan.shown_times(plan.needed([8])) == [0, 7, 8, 10]


def test_unknown_packet_makes_all_needed():
    packets = [*TWO_GROUPS[:9], (8, None), *TWO_GROUPS[10:]]
    assert index(packets).needed([10]) == list(range(9))


def test_changing_parameters_make_all_needed():
    same = [(time, kind._replace(parameters=b"p") if kind.restart else kind) for time, kind in TWO_GROUPS]
    assert index(same).needed([7]) == [0, 7]
    other = [*same[:7], (7, PacketKind(restart=True, parameters=b"q")), *same[8:]]
    assert index(other).needed([7]) == list(range(8))


def test_only_the_highest_layer_is_disposable():
    packets = [(0, RESTART), (4, NEEDED), (2, SPARE), (1, PacketKind(disposable=True, layer=1)), (3, ORDINARY)]
    assert index(packets).needed([3]) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("times", "reorders", "trusted"),
    [
        ([0, 2, 1], True, True),
        ([0, 1, 2], False, True),
        ([0, 1, 2], True, False),  # decoding times
        ([0], True, True),
        ([0, None, 1], False, False),
        ([0, 1, 1], False, False),
    ],
)
def test_implausible_times_are_ignored(times, reorders, trusted):
    assert index([(time, NEEDED) for time in times], reorders).has_times == trusted


def test_hidden_packets_are_decoded_but_not_counted():
    entries = [PacketEntry(0, False, RESTART), PacketEntry(1, False, NEEDED), PacketEntry(2, True, NEEDED)]
    plan = PacketIndex(entries, reorders=False)
    assert plan.num_frames == 1
    assert plan.needed([0]) == [0, 1, 2] and plan.shown_times([0, 1, 2]) == [2]
