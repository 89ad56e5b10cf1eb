"""Tests of exact frames: each kind of clip in every order, against its barcodes and a reference decoder."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmgal.bench.barcode_clips import KINDS, NUM_FRAMES, ClipKind, read_barcode, write_clip
from dmgal.videos.decoding import pyav_video
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.video import open_video, probe_video, read_clip


def decode_reference(path: Path) -> torch.Tensor:
    """Return all frames, ``(T, 3, H, W)``, decoded by a minimal reference program."""
    with av.open(str(path)) as container:
        images = [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(video=0)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def barcodes(clip: torch.Tensor) -> list[int]:
    return [read_barcode(image) for image in clip.permute(0, 2, 3, 1).numpy()]


@pytest.fixture(scope="module", params=KINDS)
def clip(request, tmp_path_factory) -> tuple[Path, ClipKind]:
    kind = KINDS[request.param]
    return write_clip(tmp_path_factory.mktemp("clip"), "clip", kind), kind


def test_all_frames_are_exact_in_any_order(clip):
    path, kind = clip
    truth = list(range(kind.first, NUM_FRAMES))
    plain = decode_reference(path)
    assert barcodes(plain) == truth

    count = open_video(path).num_frames
    assert count == len(truth) == probe_video(path).num_frames
    generator = random.Random(0)
    orders = [
        uniform_frames(count, 8),
        *(generator.choices(range(count), k=8) for _ in range(4)),
        list(reversed(range(count))),
        [count - 1],
        [0],
    ]
    video = open_video(path)
    for wanted in orders:
        for frames in (read_clip(path, lambda n, wanted=wanted: wanted), video.read(wanted)):
            assert barcodes(frames) == [truth[index] for index in wanted]
            assert torch.equal(frames, plain[wanted])


def test_frames_are_independent_of_threads(clip):
    path, kind = clip
    wanted = uniform_frames(NUM_FRAMES - kind.first, 6)
    one, three = (read_clip(path, lambda n: wanted, threads=threads) for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("name", "at_most"),
    [
        ("H.264 closed GOPs", 36),  # skips groups and B-frames
        ("H.264 one long GOP", 38),  # skips B-frames only
        ("H.264 open GOPs", 38),  # open groups are not restarts
        ("HEVC closed GOPs", 38),
        ("HEVC temporal layers", 38),
        ("VP9 hidden frames", 52),  # skips one key frame
    ],
)
def test_unneeded_packets_are_not_decoded(tmp_path, monkeypatch, name, at_most):
    path = write_clip(tmp_path, "clip", KINDS[name])
    decoded, plain = [], pyav_video._decode
    monkeypatch.setattr(pyav_video, "_decode", lambda c, packets: (decoded.append(f) or f for f in plain(c, packets)))
    read_clip(path, lambda n: uniform_frames(n, 8))
    assert 8 <= len(decoded) <= at_most


def test_only_wanted_frames_are_converted(tmp_path, monkeypatch):
    path = write_clip(tmp_path, "clip", KINDS["H.264 closed GOPs"])
    converted, plain = [], pyav_video.UprightRGB.__call__
    monkeypatch.setattr(pyav_video.UprightRGB, "__call__", lambda self, f: converted.append(f.pts) or plain(self, f))
    read_clip(path, lambda n: [3, 9, 3, 41])
    assert len(converted) == 3


def test_large_file_is_read_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(pyav_video, "KEPT_BYTES", 5000)
    for name in ("H.264 closed GOPs", "MPEG-4 B-frames, avi"):
        path = write_clip(tmp_path, "clip", KINDS[name])
        assert path.stat().st_size > 10_000
        assert barcodes(read_clip(path, lambda n: [50, 3, 22])) == [50, 3, 22]


def test_decoding_times_of_a_faulty_muxer_are_ignored(tmp_path):
    """Increasing times with a reordering decoder are decoding times, so the order of the decoder counts."""
    source = write_clip(tmp_path, "source", KINDS["H.264 one long GOP"])
    path = tmp_path / "wrong_times.mkv"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for place, packet in enumerate(p for p in reading.demux(video=0) if p.size):
            packet.pts = packet.dts = place * 512
            packet.stream = stream
            writing.mux(packet)
    plain = decode_reference(path)
    assert barcodes(plain) == list(range(NUM_FRAMES))
    for wanted in ([0], [1], [2], [17, 5], [59]):
        assert barcodes(read_clip(path, lambda n, wanted=wanted: wanted)) == wanted


X264 = st.fixed_dictionaries(
    {
        "keyint": st.integers(1, 30),
        "min-keyint": st.integers(1, 5),
        "bframes": st.integers(0, 6),
        "b-adapt": st.integers(0, 2),
        "b-pyramid": st.sampled_from(["none", "strict", "normal"]),
        "open-gop": st.integers(0, 1),
        "ref": st.integers(1, 5),
        "direct": st.sampled_from(["none", "spatial", "temporal", "auto"]),
        "weightp": st.integers(0, 2),
        "slices": st.integers(1, 3),
        "intra-refresh": st.integers(0, 1),
        "interlaced": st.sampled_from([0, 0, 0, 1]),
        "repeat-headers": st.integers(0, 1),
        "cabac": st.integers(0, 1),
    }
)
STEPS = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def check_any_h264(folder: Path, options: dict, suffix: str, steps: list[int], draw: random.Random) -> None:
    times = np.cumsum([0, *steps]).tolist()
    if suffix == ".avi":
        options = options | {"repeat-headers": 1}  # this format cannot store them elsewhere
    settings = {"x264-params": ":".join(f"{key}={value}" for key, value in options.items()) + ":threads=1"}
    kind = ClipKind(suffix, "libx264", {**settings, "preset": "veryfast"}, times=times.__getitem__)
    path = write_clip(folder, "any", kind, range(len(times)))
    plain = decode_reference(path)
    assert barcodes(plain) == list(range(len(times)))
    for wanted in (uniform_frames(len(times), 8), draw.choices(range(len(times)), k=3), [draw.randrange(len(times))]):
        assert torch.equal(read_clip(path, lambda n, wanted=wanted: wanted), plain[wanted])


@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(X264, st.sampled_from([".mp4", ".mkv", ".flv", ".mov"]), STEPS, st.randoms(use_true_random=False))
def test_random_h264_clips_are_exact(tmp_path, options, suffix, steps, draw):
    check_any_h264(tmp_path, options, suffix, steps, draw)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(X264, st.sampled_from([".mp4", ".mkv", ".flv", ".mov", ".avi"]), STEPS, st.randoms(use_true_random=False))
def test_many_random_h264_clips_are_exact(tmp_path, options, suffix, steps, draw):
    check_any_h264(tmp_path, options, suffix, steps, draw)


X265 = st.fixed_dictionaries(
    {
        "keyint": st.integers(1, 30),
        "min-keyint": st.integers(1, 5),
        "bframes": st.integers(0, 5),
        "b-adapt": st.integers(0, 2),
        "b-pyramid": st.integers(0, 1),
        "open-gop": st.integers(0, 1),
        "ref": st.integers(1, 4),
        "repeat-headers": st.integers(0, 1),
        "rc-lookahead": st.just(30),
    }
).filter(lambda options: options["min-keyint"] <= options["keyint"])  # else x265 itself crashes with open GOPs


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(X265, st.sampled_from([".mp4", ".mkv"]), st.integers(2, 40), st.randoms(use_true_random=False))
def test_many_random_hevc_clips_are_exact(tmp_path, options, suffix, count, draw):
    parameters = ":".join(f"{key}={value}" for key, value in options.items())
    parameters += ":log-level=none:pools=none:frame-threads=1"
    kind = ClipKind(suffix, "libx265", {"x265-params": parameters, "preset": "ultrafast"})
    path = write_clip(tmp_path, "any", kind, range(count))
    plain = decode_reference(path)
    for wanted in (uniform_frames(len(plain), 8), draw.choices(range(len(plain)), k=3)):
        assert torch.equal(read_clip(path, lambda n, wanted=wanted: wanted), plain[wanted])
