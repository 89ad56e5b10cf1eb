"""Recognition through the command line: the answers of an episode, as JSON and as text; long videos in time."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dmgal.videos.decoding.clip as transforms
from dmgal.cli import main
from dmgal.episodes import Episode
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.videos import VideoCatalog
from dmgal.videos.annotations.segment import split_name
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.video import open_video, read_clip
from dmgal.videos.generated import write_video

SHOTS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory, frame_folders, save_run) -> Path:
    """``run``, ``enrolled`` and ``others`` (class folders), and two galleries: with and without a shortlist."""
    root = tmp_path_factory.mktemp("galleries")
    save_run(root / "run", "dmgal_adapter")
    for path in (frame_folders / "test").iterdir():
        for clip in sorted(path.iterdir()):
            part = "enrolled" if int(clip.name) < SHOTS else "others"
            shutil.copytree(clip, root / part / path.name / clip.name)
    for name, more in (("whole", ()), ("short", ("--shortlist", "2"))):
        out = ["--out", str(root / f"{name}.safetensors"), "--quiet", *more]
        assert main(["enroll", str(root / "run"), str(root / "enrolled"), *out]) == 0
    return root


@pytest.fixture
def recognize(folders, capsys):
    """Run the command on the whole gallery, and return its output, parsed if it is JSON."""

    def run(*words, gallery="whole", code=0, run=None):
        capsys.readouterr()
        command = ["recognize", str(run or folders / "run"), str(folders / f"{gallery}.safetensors")]
        assert main([*command, *map(str, words), "--quiet"]) == code
        printed = capsys.readouterr()
        if code:
            return printed.err
        return json.loads(printed.out) if "--json" in words else printed.out

    return run


def clip_of(path):
    return transforms.TestTransform(48, resize=1.0)(read_clip(path, lambda count: uniform_frames(count, 4)))


def test_scores_equal_those_of_an_episode_with_the_same_clips(recognize, folders):
    report = recognize(folders / "others", "--json")
    names = report["classes"]
    paths = {
        part: [c for n in names for c in sorted((folders / part / n).iterdir())] for part in ("enrolled", "others")
    }
    labels = torch.arange(len(names)).repeat_interleave(SHOTS)
    clips = {part: torch.stack([clip_of(path) for path in found]) for part, found in paths.items()}
    _, recognizer = load_run(Run(folders / "run"))
    with torch.no_grad():
        logits = recognizer(Episode(clips["enrolled"], labels, clips["others"], labels, tuple(names))).logits
    assert [one["video"] for one in report["videos"]] == [str(path) for path in paths["others"]]
    for one, row in zip(report["videos"], logits, strict=True):
        told = torch.tensor([one["scores"][name]["logit"] for name in names])
        torch.testing.assert_close(told, row, rtol=1e-5, atol=1e-5)
        probabilities = (row.double() / report["rejection"]["temperature"]).softmax(0)
        assert one["best"] == names[int(row.argmax())] and one["probability"] == pytest.approx(
            probabilities.max().item(), rel=1e-4
        )
        top = row.topk(2).values
        assert one["margin"] == pytest.approx((top[0] - top[1]).item(), abs=1e-4)
        score = (row.max() - report["rejection"]["offsets"][int(row.argmax())]).item()
        assert one["score"] == pytest.approx(score, abs=1e-4)
        assert one["recognized"] == (one["best"] if score >= report["rejection"]["threshold"] else None)
    right = sum(one["best"] == Path(one["video"]).parent.name for one in report["videos"])
    assert report["accuracy"]["right"] == right == (logits.argmax(1) == labels).sum()
    assert report["accuracy"]["percent"] == 100 * right / 8 and report["accuracy"]["enrolled"] == 0


def test_text_and_json_name_the_source_of_the_threshold(recognize, folders):
    clip = next((folders / "others").iterdir()) / "2"
    assert "from 8 held-out clips" in recognize(clip)
    assert recognize(clip, "--json")["rejection"]["source"] == "held-out clips"
    assert recognize(clip, "--json", "--no-unknown")["rejection"] is None
    assert "(unknown)" not in recognize(clip, "--no-unknown")


def test_one_clip_prints_classes_and_several_clips_print_rows(recognize, folders):
    name = next((folders / "others").iterdir()).name
    printed = recognize(folders / "others" / name / "2", "--top", "3")
    assert "class" in printed and "and 1 more classes" in printed and "margin" in printed
    printed = recognize(folders / "others", folders / "enrolled")
    assert len([line for line in printed.splitlines() if str(folders) in line]) == 16
    assert "right: " in printed and "8 enrolled clips not counted" in printed


def test_classes_off_the_shortlist_have_no_logit(recognize, folders):
    report = recognize(folders / "others", "--json", gallery="short")
    assert report["shortlist"] == 2
    for one in report["videos"]:
        listed = [score for score in one["scores"].values() if score["logit"] is not None]
        assert len(listed) == 2 and sum(score["probability"] for score in listed) == pytest.approx(1)
    whole = recognize(folders / "others", "--json", "--shortlist", "0", gallery="short")
    assert whole == recognize(folders / "others", "--json")


@pytest.fixture(scope="module")
def long_video(folders):
    """Six clips of 8 frames, 10 frames per second."""
    paths = sorted((folders / "others").glob("*/*"))[:6]
    videos = [open_video(path) for path in paths]
    write_video(folders / "long.mp4", torch.cat([video.read(range(video.num_frames)) for video in videos]))
    return folders / "long.mp4"


def test_long_video_becomes_segments(recognize, long_video):
    report = recognize(long_video, "--json", "--window", "0.8", "--stride", "0.4")
    [one] = report["videos"]
    assert [window["start"] for window in one["windows"]] == pytest.approx([0.4 * k for k in range(12)])
    starts, ends = ([segment[key] for segment in one["segments"]] for key in ("start", "end"))
    assert starts == pytest.approx([0, *ends[:-1]]) and ends[-1] == pytest.approx(4.8)
    assert (report["window"], report["stride"], one["damage"]) == (0.8, 0.4, None)
    printed = recognize(long_video, "--window", "0.8")
    assert "0:00.0" in printed and "0:04.8" in printed and "action" in printed


def test_window_scores_equal_those_of_a_clip_of_its_frames(recognize, tmp_path, long_video):
    windows = recognize(long_video, "--json", "--window", "0.8")["videos"][0]["windows"]
    frames = open_video(long_video).read(range(24))
    for start, window in ((0, windows[0]), (12, windows[3])):
        folder = tmp_path / str(start)
        folder.mkdir()
        for place in range(8):
            Image.fromarray(frames[start + place].permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
        [clip] = recognize(folder, "--json", "--no-unknown")["videos"]
        assert window["start"] == pytest.approx(start / 10)
        assert window["best"] == clip["best"] and window["logit"] == pytest.approx(clip["logit"], abs=1e-4)


def test_frame_folder_needs_fps_for_windows(recognize, folders):
    clip = next((folders / "others").iterdir()) / "2"
    assert "--fps" in recognize(clip, "--window", "0.4", code=2)
    report = recognize(clip, "--window", "0.4", "--fps", "10", "--json")
    assert [window["end"] for window in report["videos"][0]["windows"]] == pytest.approx([0.4, 0.6, 0.8, 0.8])


def test_gallery_of_another_model_raises_with_the_difference(recognize, folders, tmp_path):
    clip = next((folders / "others").iterdir()) / "2"
    for change in ("adapter", "head"):
        other = tmp_path / change
        shutil.copytree(folders / "run", other)
        path = other / "adapter" / "adapter_model.safetensors" if change == "adapter" else Run(other).weights
        weights = {name: tensor + 0.01 for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        said = recognize(clip, code=2, run=other)
        assert f"{change} weights" in said and "backbone" not in said and "enroll the clips again" in said


def test_bad_input_raises_with_a_remedy(recognize, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("hello")
    clip = next((folders / "others").iterdir()) / "2"
    content = (folders / "whole.safetensors").read_bytes()
    (folders / "short_of_bytes.safetensors").write_bytes(content[:-50])
    cases = [
        ([tmp_path / "empty"], "no clip"),
        ([], "no path"),
        ([tmp_path / "missing.mp4"], "missing.mp4"),
        ([tmp_path / "text.mp4"], "text.mp4"),
        ([tmp_path / "text.mp4", "--window", "1"], "text.mp4"),
        ([clip, "--stride", "1"], "--window"),
        ([clip, "--window", "1", "--stride", "2", "--fps", "10"], "stride <= window"),
    ]
    for words, said in cases:
        error = recognize(*words, code=2)
        assert said in error and "what to do" in error
    assert "cannot be read" in recognize(clip, gallery="short_of_bytes", code=2)
    assert "no such gallery" in recognize(clip, gallery="missing", code=2)


def test_bad_clips_are_skipped_on_request(recognize, folders, tmp_path):
    shutil.copytree(folders / "others", tmp_path / "clips")
    (next((tmp_path / "clips").iterdir()) / "text.mp4").write_text("hello")
    assert "text.mp4" in recognize(tmp_path / "clips", code=2)
    report = recognize(tmp_path / "clips", "--json", "--on-bad-video", "skip")
    assert len(report["videos"]) == 8 and len(report["bad"]) == 1 and "text.mp4" in report["bad"][0]["video"]


def test_gallery_of_one_class_answers_this_or_unknown(recognize, folders):
    name = next((folders / "enrolled").iterdir()).name
    out = folders / "one.safetensors"
    words = ["--class-name", "only", "--out", str(out), "--quiet"]
    assert main(["enroll", str(folders / "run"), str(folders / "enrolled" / name), *words]) == 0
    report = recognize(folders / "others", "--json", gallery="one")
    assert all(one["margin"] is None and one["probability"] == 1 for one in report["videos"])
    for one in report["videos"]:
        assert (one["recognized"] == "only") == (one["logit"] >= report["rejection"]["threshold"])
        assert math.isfinite(one["logit"])
    assert report["accuracy"] is None


@pytest.mark.parametrize("name", ["segments.csv", "segments.json", "segments.xml"])
def test_segments_are_written_as_annotations(recognize, folders, long_video, name):
    out = folders / name
    report = recognize(long_video, "--json", "--window", "0.8", "--out", out)
    known = [one for one in report["videos"][0]["segments"] if one["recognized"] is not None]
    frames = [(one["recognized"], round(10 * one["start"]), round(10 * one["end"])) for one in known]
    if name.endswith("json"):
        [task] = json.loads(out.read_text())
        assert task["data"] == {"video": "long.mp4"} and task["predictions"][0]["model_version"] == "dmgal"
        task["annotations"] = task.pop("predictions")  # as if a person accepted them
        out.write_text(json.dumps([task]))
    catalog = VideoCatalog.from_split(out, folders)
    read = [(catalog.class_names[c], *split_name(v)) for c, v in zip(catalog.labels, catalog.videos, strict=True)]
    scale = 10 if name.endswith("csv") else 1
    assert [(c, video, scale * span.start, scale * span.end) for c, video, span in read] == [
        (c, "long.mp4", start, end) for c, start, end in frames
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out", "x.csv"], "without --window"),
        (["--window", "1", "--out", "x.txt"], "cannot be written"),
        (["--window", "1", "--out", "nowhere/x.csv"], "existing folder"),
    ],
)
def test_segments_are_not_written_anywhere(recognize, long_video, more, message):
    assert message in recognize(long_video, *more, code=2)


def test_cvat_takes_one_video(recognize, folders, long_video):
    assert "single video" in recognize(long_video, long_video, "--window", "1", "--out", folders / "x.xml", code=2)
