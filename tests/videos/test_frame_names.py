"""The choice of the one sequence of frames among the pictures of a folder, and its order."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dmgal.videos.checking import CheckedVideo, _check
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.frame_names import frame_sequence
from dmgal.videos.decoding.video import open_video, probe_video, read_clip


def numbered(pattern: str, numbers=range(1, 13)) -> list[str]:
    return [pattern.format(number) for number in numbers]


def shuffled(names: list[str]) -> list[str]:
    return random.Random(0).sample(names, len(names))


@pytest.mark.parametrize(
    "names",
    [
        numbered("{:05}.jpg"),
        numbered("{}.png"),
        numbered("img_{}.JPG"),
        numbered("Video 2 - clip (3) frame {}.jpeg"),
        numbered("frame-{}.png"),
        numbered("2020-01-{:02}.png"),
        numbered("clip.{:04}.jpg", range(9995, 10005)),
        numbered("frame_{}.png", range(-12, 13)),
        numbered("{}.png", range(-12, 0)),
        numbered("t={}.png", range(-2, 2)),
        numbered("frame{}.png", range(-12, 13)),
        numbered("shot 1 frame{}.png", range(-2, 2)),
        numbered("part {0}/frame_{0}.png", range(-2, 2)),
        ["0.5.png", "1.25.png", "1.5.png", "2.0.png", "10.0.png"],
        ["-1.5.png", "-1.25.png", "-0.5.png", "0.png", "0.25.png", "0.5.png", "1.png"],
        ["t0,5.png", "t1,25.png", "t1,5.png"],
        ["frame_-0.75.jpg", "frame_-0.5.jpg", "frame_0.0.jpg", "frame_0.125.jpg"],
        numbered("1.{}.jpg", range(1, 13)),
        numbered("1.{}.jpg", range(8, 13)),
        ["0.33.png", "0.40.png", "1.00.png"],
        [f"part{part}/{frame}.png" for part in (2, 10) for frame in (9, 10)],
        [f"{number:0300}1.png" for number in range(3)],
        ["only.png"],
        ["٣.png"],
    ],
)
def test_one_sequence_is_in_numeric_order(names):
    assert frame_sequence(shuffled(names)) == names and frame_sequence([]) == []


@given(st.sets(st.decimals(-99, 99, places=2), min_size=1), st.sampled_from(["{}.png", "f_{}.png", "a 1=_{}.png"]))
def test_decimal_numbers_of_python_are_in_order(numbers, pattern):
    names = [pattern.format(float(number)) for number in sorted(numbers)]
    names = list(dict.fromkeys(name.replace("-0.0.", "0.0.") for name in names))
    assert frame_sequence(shuffled(names)) == names


FRAMES = numbered("img_{:05}.jpg", range(1, 6))


@pytest.mark.parametrize(
    ("frames", "others"),
    [
        (FRAMES, [*numbered("flow_x_{:05}.jpg", range(1, 5)), *numbered("flow_y_{:05}.jpg", range(1, 5))]),
        (FRAMES, ["thumbnail.jpg"]),
        (FRAMES, ["cover.png", "folder.jpg", "preview_1.png"]),
        (numbered("{:05}.jpg"), numbered("{:05}_mask.png")),
        (numbered("{:05}.jpg"), numbered("depth/{:05}.png")),
        (numbered("rgb/{:05}.jpg"), numbered("FlowX/{:05}.jpg") + numbered("Segmentation/{:05}.png")),
        (numbered("mask dance/{}.jpg"), [*numbered("mask dance/{}_depth.jpg"), "mask dance/poster.jpg"]),
        (["1.png"], ["thumbnail.png"]),
    ],
)
def test_pictures_beside_the_frames_are_left_aside(frames, others):
    assert frame_sequence(shuffled(frames + others)) == frames


@pytest.mark.parametrize(
    "names",
    [
        numbered("{:05}.jpg") + numbered("{:05}.png"),
        numbered("left_{}.jpg") + numbered("right_{}.jpg"),
        numbered("flow_x_{}.jpg") + numbered("flow_y_{}.jpg"),
        numbered("cam{}.jpg") + numbered("cam-{}.jpg"),
        [f"frame_{letter}.png" for letter in "abcdefg"],
        ["img.jpg", *numbered("img_{}.jpg")],
        ["img.jpg", *numbered("img ({}).jpg")],
        ["img_1.jpg", "img_2.jpg", "image_3.jpg", "img_4.jpg"],
        ["a1.jpg", *numbered("preview_{}.jpg")],
        ["1.jpg", "1 (1).jpg"],
    ],
)
def test_several_sequences_are_refused_by_name(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(VideoError, match=r"its pictures are \d+ sequences, not one: ") as caught:
        open_video(tmp_path)
    assert names[0] in caught.value.received
    assert _check(tmp_path, probe_video) == CheckedVideo(0, caught.value.received)


@pytest.mark.parametrize("names", [["1.jpg", "1.jpeg"], ["1.jpg", "01.jpg"], ["1.png", "1.PNG", "2.png"]])
def test_two_pictures_with_one_number_are_refused(names):
    with pytest.raises(ValueError, match=r"two pictures have one number: (1|01)\.\w+, 1\.\w+$"):
        frame_sequence(names)


def write_frames(folder: Path, sizes: list[tuple[int, int]], orientations: list[int], ending: str = "jpg") -> Path:
    folder.mkdir()
    for number, (size, orientation) in enumerate(zip(sizes, orientations, strict=True), start=1):
        exif = Image.Exif()
        if orientation > 1:
            exif[0x112] = orientation
        pixels = np.full((size[1], size[0], 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.{ending}", exif=exif)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize(
    ("sizes", "orientations", "reason"),
    [
        ([(64, 48)] * 3 + [(66, 48)], [1] * 4, "00001.E is 64 x 48, orientation 1, 00004.E is 66 x 48, orientation 1"),
        ([(64, 48)] * 3 + [(48, 64)], [1] * 4, "00001.E is 64 x 48, orientation 1, 00004.E is 48 x 64, orientation 1"),
        ([(64, 48)] * 4, [1, 1, 6, 1], "00001.E is 64 x 48, orientation 1, 00003.E is 48 x 64, orientation 6"),
        ([(64, 48)] * 4, [1, 3, 1, 1], "00001.E is 64 x 48, orientation 1, 00002.E is 64 x 48, orientation 3"),
        ([(64, 64)] * 4, [8, 8, 8, 6], "00001.E is 64 x 64, orientation 8, 00004.E is 64 x 64, orientation 6"),
        ([(64, 48)] * 3 + [(48, 64)], [1, 1, 1, 6], "orientation 1, 00004.E is 64 x 48, orientation 6"),
        ([(64, 48)] * 4, [6] * 4, ""),
        ([(64, 48)] * 4, [2] * 4, ""),
    ],
)
def test_check_reports_frames_of_two_sizes_or_orientations(tmp_path, sizes, orientations, reason, ending, zipped):
    path = write_frames(tmp_path / "frames", sizes, orientations, ending)
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for frame in path.iterdir():
                archive.write(frame, frame.name)
        path = tmp_path / "a.zip"
    checked = _check(path, probe_video)
    if not reason:
        assert checked.problem is None and checked.frames == 4 and not checked.is_bad(8)
        return
    assert checked.is_bad(1) and checked.frames == 0
    assert checked.problem.startswith("its frames differ in size or EXIF orientation: ")
    assert reason.replace("E", ending) in checked.problem


def test_frames_before_a_broken_one_count(tmp_path):
    path = write_frames(tmp_path / "frames", [(64, 48)] * 4, [1] * 4)
    (path / "00004.jpg").write_bytes(b"no picture")
    assert _check(path, probe_video).frames == 3
    write_frames(tmp_path / "other", [(64, 48), (66, 48), (64, 48)], [1] * 3)
    (tmp_path / "other" / "00003.jpg").write_bytes(b"")
    assert _check(tmp_path / "other", probe_video).frames == 0
    assert read_clip(path, range)[:, 0, 0, 0].tolist() == [20, 40, 60]
