"""Clips that a program passes: what is accepted, with which frames, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dmgal.errors import DmgalError
from dmgal.videos.decoding.in_memory import as_video
from dmgal.videos.decoding.video import open_video, read_clip

FRAMES = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (FRAMES, 8, 10, 3), dtype=np.uint8)


def in_order(count):
    return range(count)


def test_array_and_tensor_are_the_same_video():
    array, tensor = as_video(PIXELS), as_video(torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert array.num_frames == FRAMES and array.content_hash() == tensor.content_hash()
    assert torch.equal(read_clip(array, in_order), torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert torch.equal(tensor.read([4, 1, 1]), read_clip(array, in_order)[[4, 1, 1]])
    assert as_video(PIXELS[::-1, :, ::-1]).content_hash() != array.content_hash()  # also with negative strides
    with pytest.raises(IndexError):
        array.read([FRAMES])


def test_paths_are_not_opened(tmp_path):
    assert as_video(str(tmp_path / "missing.mp4")) == as_video(tmp_path / "missing.mp4") == tmp_path / "missing.mp4"


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_open_container_has_the_frames_of_its_file(name, codec, tmp_path, write_video):
    path = write_video(tmp_path / name, range(40), codec)
    expected = open_video(path).read(range(40))
    with av.open(str(path)) as container:
        next(container.decode(video=0))  # not at its start any more
        video = as_video(container)
        assert video.num_frames == 40
        assert torch.equal(video.read(range(40)), expected)
        assert torch.equal(video.read([39, 0]), expected[[39, 0]])
    with av.open(io.BytesIO(path.read_bytes())) as container:
        again = as_video(container)
        assert torch.equal(again.read([7]), expected[[7]]) and again.content_hash() == video.content_hash()
    with pytest.raises(DmgalError, match="the container"):
        again.read([0])


def test_damage_ends_a_container_as_it_ends_a_file(tmp_path, write_video):
    path = write_video(tmp_path / "cut.mp4", range(40), muxer_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    expected = read_clip(path, in_order)
    with av.open(str(path)) as container:
        video = as_video(container)
        assert video.damage is not None and 2 < video.num_frames < 40
        assert torch.equal(read_clip(video, in_order), expected)
        with pytest.raises(DmgalError, match=f"only {video.num_frames} frames decode of 40 wanted"):
            read_clip(video, in_order, at_least=40)


def container_without_video(folder: Path) -> av.container.InputContainer:
    with av.open(str(folder / "sound.wav"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return av.open(str(folder / "sound.wav"))


REFUSED = {
    "nothing": (None, "NoneType"),
    "number": (3, "int"),
    "list of frames": ([*PIXELS], "numpy.stack"),
    "floats": (PIXELS / 255, "range"),
    "float tensor": (torch.rand(4, 3, 8, 8), "range"),
    "integers": (PIXELS.astype(np.int64), "uint8"),
    "objects": (np.array([PIXELS[0], PIXELS[1, :4]], dtype=object), "one size"),
    "one image": (PIXELS[0], "one frame"),
    "one frame": (PIXELS[:1], "one frame"),
    "no frame": (PIXELS[:0], "with frames"),
    "no pixel": (PIXELS[:, :0], "with frames and pixels"),
    "several clips": (PIXELS[None], "several clips"),
    "gray": (PIXELS[..., :1], "gray"),
    "alpha": (np.zeros((4, 8, 8, 4), np.uint8), "RGB"),
    "colors first": (PIXELS.transpose(0, 3, 1, 2), r"transpose\(0, 2, 3, 1\)"),
    "colors last": (torch.from_numpy(PIXELS), r"permute\(0, 3, 1, 2\)"),
    "huge": (np.broadcast_to(np.uint8(0), (2, 10**4, 10**4, 3)), "Resize"),
}


@pytest.mark.parametrize("clip, remedy", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_with_a_remedy(clip, remedy):
    with pytest.raises(DmgalError, match=f"(?s)This is not a clip.*{remedy}") as refused:
        as_video(clip)
    assert refused.value.received and "uint8 array (T, H, W, 3)" in refused.value.expected


def test_containers_without_a_video_are_refused(tmp_path, write_video):
    with container_without_video(tmp_path) as container, pytest.raises(DmgalError, match="no video stream"):
        as_video(container)
    container = av.open(str(write_video(tmp_path / "one.mp4", [0])))
    with container, pytest.raises(DmgalError, match="with 1 frame\n"):
        as_video(container)
    with pytest.raises(DmgalError, match="the container"):
        as_video(container)
