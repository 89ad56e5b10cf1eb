"""Tests of stores: equality with decoding, reports of differences, and recovery from damage."""

from __future__ import annotations

import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.episodes.sampler import EpisodeSampler
from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import CACHE_BYTES, ClipSource, VideoDataset
from dmgal.videos.decoding import clip as transforms
from dmgal.videos.decoding import images as frame_images
from dmgal.videos.decoding import pyav_video
from dmgal.videos.decoding.clip import FrameSampler, random_frames
from dmgal.videos.decoding.video import read_clip
from dmgal.videos.store import content as store_content
from dmgal.videos.store.build import build_store
from dmgal.videos.store.content import EvaluationClips, TrainingFrames, pack, unpack
from dmgal.videos.store.store import DATA, INDEX, StoredClips, StoredFrames, read_records

LENGTH = 12
CLIPS = EvaluationClips(4, transforms.TestTransform(40, resize=1.2))
DECODED = FrameSampler(4, CLIPS.transform)
AS_DECODED = (64, 128)


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video, write_frames) -> Path:
    """Return a root with three splits of two classes, each with two files and a frame folder, with unusual names."""
    root = tmp_path_factory.mktemp("videos")
    first = 0
    for split in ("train", "val", "test"):
        for name in ("push it", "Ziehen \u00fc'\""):
            folder = root / split / f"{split} {name}"
            for number in range(2):
                write_video(folder / f"video {number}.mp4", range(first, first + LENGTH), options={"bf": "2"})
                first += LENGTH
            write_frames(folder / "frames", range(first, first + LENGTH))
            first += LENGTH
    return root


@pytest.fixture(scope="module")
def catalog(videos) -> VideoCatalog:
    return VideoCatalog.from_folders(videos)


@pytest.fixture(scope="module")
def built(catalog, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "store"
    test, train = build_store(catalog, folder, CLIPS, workers=1, progress=False)
    assert (test.name, test.videos, test.made, test.unreadable) == ("test", 12, 12, ())
    assert (train.name, train.videos, train.made, train.unreadable) == ("train", 6, 6, ())
    return folder


@pytest.fixture
def copied(catalog, built, tmp_path) -> tuple[VideoCatalog, Path]:
    """Return copies of videos and store that a test may modify, with the original modification times."""
    shutil.copytree(catalog.root, tmp_path / "videos")
    shutil.copytree(built, tmp_path / "store")
    return VideoCatalog.from_folders(tmp_path / "videos"), tmp_path / "store"


def rebuild(catalog: VideoCatalog, folder: Path, clips: EvaluationClips = CLIPS, **options):
    return build_store(catalog, folder, clips, workers=1, progress=False, **options)


def through_jpeg(frame: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=90)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def clips_of(catalog: VideoCatalog, store: Path | None = None) -> VideoDataset:
    return VideoDataset(ClipSource(catalog, store=store), DECODED)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_test_clips_are_bit_identical_to_decoding(catalog, built):
    for split in ("val", "test"):
        part = catalog.split(split)
        plain = clips_of(part)
        stored = clips_of(part, store=built)
        assert len(plain) == 6
        assert all(torch.equal(plain[video], stored[video]) for video in range(6))
        sampler = EpisodeSampler(part.labels, 2, 1, 1, 3, seed=0)
        episodes = [EpisodeDataset(ClipSource(part, store=s), sampler, DECODED) for s in (None, built)]
        assert all(torch.equal(episodes[0][e].query, episodes[1][e].query) for e in range(3))


def test_training_frames_are_the_chosen_frames_as_jpegs(catalog, built, frame_numbers):
    train = catalog.split("train")
    frames = StoredFrames(built, train)
    for video in range(len(train)):
        wanted = random_frames(LENGTH, 8, torch.Generator().manual_seed(video))
        stored = frames.read(video, lambda count, wanted=wanted: wanted if count == LENGTH else [])
        exact = read_clip(train.path(video), lambda _, wanted=wanted: wanted)
        assert stored.shape == exact.shape and stored.dtype == torch.uint8
        assert frame_numbers(stored) == frame_numbers(exact)
        assert torch.equal(stored, torch.stack([through_jpeg(frame) for frame in exact]))


def test_training_draws_are_independent_of_the_store(catalog, built, frame_numbers):
    train = catalog.split("train")
    sampler = EpisodeSampler(train.labels, 2, 1, 1, 4, seed=0)
    as_read = lambda clip, generator: clip.contiguous()  # noqa: E731
    for transform, close in ((as_read, 4), (transforms.TrainTransform(32, flip=True, color_jitter=0.3), 6)):
        plain, stored, cached = (
            EpisodeDataset(ClipSource(train, "pyav", store, cache), sampler, FrameSampler(4, transform, seed=3))
            for store, cache in ((None, 0), (built, 0), (built, CACHE_BYTES))
        )
        for number in range(4):
            exact, through_jpeg = plain[number].support, stored[number].support
            assert (exact.float() - through_jpeg.float()).abs().mean() < close
            assert torch.equal(cached[number].support, through_jpeg)
            if transform is as_read:
                assert [frame_numbers(clip) for clip in exact] == [frame_numbers(clip) for clip in through_jpeg]


def test_only_large_frames_are_shrunk(catalog, tmp_path):
    train = catalog.split("train")
    rebuild(train, tmp_path, frames=TrainingFrames(short_side=32))
    frames = StoredFrames(tmp_path, train)
    small = frames.read(0, range)
    assert small.shape == (LENGTH, 3, 32, 64) and frames.content.short_side == 32
    exact = transforms.short_side_to(read_clip(train.path(0), range), 32)
    assert (small.float() - exact.float()).abs().mean() < 6
    sampler = EpisodeSampler(train.labels, 2, 1, 1, 1, 0)
    with pytest.raises(DmgalError, match="short side of 32 pixels"):
        source = ClipSource(train, store=tmp_path)
        EpisodeDataset(source, sampler, FrameSampler(4, transforms.TrainTransform(33), seed=0))


def test_decoding_in_passes_gives_equal_frames(catalog, monkeypatch):
    whole = TrainingFrames().encode(catalog.path(0))
    monkeypatch.setattr(store_content, "BYTES_AT_ONCE", 5 * 3 * AS_DECODED[0] * AS_DECODED[1])
    assert TrainingFrames().encode(catalog.path(0)) == whole
    assert whole[0] == LENGTH


def test_catalog_without_splits_has_both_parts(catalog, tmp_path):
    plain = replace(catalog.split("test"), class_splits=None)
    assert [(report.name, report.made) for report in rebuild(plain, tmp_path)] == [("test", 6), ("train", 6)]
    assert torch.equal(StoredClips(tmp_path, plain, CLIPS).read(2), clips_of(plain)[2])


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_can_read_the_store(catalog, built, context):
    part = catalog.split("val")
    stored = clips_of(part, store=built)
    one = stored[0]  # the file is mapped here before the workers start
    loader = DataLoader(stored, batch_size=None, num_workers=1, multiprocessing_context=context)
    loaded = list(loader)
    assert torch.equal(loaded[0], one)
    assert all(torch.equal(clip, stored[video]) for video, clip in enumerate(loaded))


def test_returned_clip_is_a_copy(catalog, built):
    clips = StoredClips(built, catalog.split("val"), CLIPS)
    first = clips.read(0)
    kept = first.clone()
    first.zero_()
    assert torch.equal(clips.read(0), kept) and kept.any()


class TestRebuild:
    """Behavior of later builds, and errors of readers before them."""

    def test_finished_store_is_unchanged(self, copied):
        catalog, folder = copied
        before = contents(folder)
        assert [report.made for report in rebuild(catalog, folder)] == [0, 0]
        assert contents(folder) == before

    @pytest.mark.slow
    def test_store_is_independent_of_processes(self, catalog, built, tmp_path):
        reports = build_store(catalog, tmp_path / "store", CLIPS, workers=2, progress=False)
        assert [report.made for report in reports] == [12, 6]
        for split in ("val", "test"):
            part = catalog.split(split)
            one, two = (StoredClips(folder, part, CLIPS) for folder in (built, tmp_path / "store"))
            assert all(torch.equal(one.read(video), two.read(video)) for video in range(len(part)))

    def test_changed_video_is_named_and_decoded_again(self, copied, write_video):
        catalog, folder = copied
        test = catalog.split("test")
        changed = next(video for video in range(len(test)) if test.path(video).is_file())
        write_video(test.path(changed), range(40, 40 + LENGTH), options={"bf": "0"})
        with pytest.raises(DmgalError, match=r"is stale\.\n(.|\n)*1 of 6 videos differ: test/.*had \d+ bytes and has"):
            StoredClips(folder, test, CLIPS)
        StoredClips(folder, catalog.split("val"), CLIPS)  # the other splits are unchanged
        assert [report.made for report in rebuild(catalog, folder)] == [1, 0]
        assert torch.equal(StoredClips(folder, test, CLIPS).read(changed), clips_of(test)[changed])

    def test_changed_frame_of_a_folder_is_detected(self, copied):
        catalog, folder = copied
        test = catalog.split("test")
        frames = next(v for v in range(len(test)) if test.path(v).is_dir())
        first, second = (test.path(frames) / f"frame{n}.png" for n in (2, 3))
        names = first.read_bytes(), second.read_bytes()
        second.write_bytes(names[0])
        first.write_bytes(names[1])  # the same total size
        with pytest.raises(DmgalError, match="was changed or copied since"):
            StoredClips(folder, test, CLIPS)
        assert rebuild(catalog, folder)[0].made == 1
        assert torch.equal(StoredClips(folder, test, CLIPS).read(frames), clips_of(test)[frames])

    def test_touched_videos_are_recognized_by_content(self, copied):
        catalog, folder = copied
        test = catalog.split("test")
        for video in range(len(test)):
            os.utime(test.path(video), (1, 1))
        with pytest.raises(DmgalError, match=r"[3-6] of 6 videos differ: .* was changed or copied since"):
            StoredClips(folder, test, CLIPS)
        size = (folder / "test" / DATA).stat().st_size
        assert [report.made for report in rebuild(catalog, folder)] == [0, 0]
        assert (folder / "test" / DATA).stat().st_size == size
        assert torch.equal(StoredClips(folder, test, CLIPS).read(0), clips_of(test)[0])

    def test_new_video_is_named_and_added(self, copied):
        catalog, folder = copied
        video = next((catalog.root / "test").rglob("*.mp4"))
        shutil.copy(video, video.with_name("another.mp4"))
        catalog = VideoCatalog.from_folders(catalog.root)
        with pytest.raises(DmgalError, match=r"test/.*another\.mp4 is not in it\n(.|\n)*dmgal store"):
            clips_of(catalog.split("test"), store=folder)
        assert [report.made for report in rebuild(catalog, folder)] == [1, 0]
        clips_of(catalog.split("test"), store=folder)[6]


class TestOtherContent:
    """Errors of readers and builders for a store with other content, which name the differences."""

    @pytest.mark.parametrize(
        ("clips", "stored", "wanted"),
        [
            (EvaluationClips(8, CLIPS.transform), "num_frames=4", "num_frames=8"),
            (EvaluationClips(4, transforms.TestTransform(48, resize=1.2)), "size=40", "size=48"),
            (EvaluationClips(4, transforms.TestTransform(40)), "resize=1.2", "resize=1.0"),
            (EvaluationClips(4, CLIPS.transform, "decord"), "decoder='pyav'", "decoder='decord'"),
        ],
    )
    def test_other_clips_raise(self, catalog, built, clips, stored, wanted):
        before = contents(built)
        for work in (lambda: StoredClips(built, catalog.split("val"), clips), lambda: rebuild(catalog, built, clips)):
            with pytest.raises(DmgalError, match="holds something else") as refusal:
                work()
            assert stored in str(refusal.value) and wanted in str(refusal.value)
        assert contents(built) == before

    def test_other_frames_raise(self, catalog, built):
        with pytest.raises(DmgalError, match=r"quality=80, short_side=128\n.*quality=90, short_side=256"):
            rebuild(catalog, built, frames=TrainingFrames(128, 80))

    def test_store_of_an_earlier_version_raises(self, catalog, built, tmp_path):
        old = tmp_path / "old"
        shutil.copytree(built, old)
        key = old / "test" / "key.json"
        key.write_text(re.sub('"store version": [0-9]+', '"store version": 2', key.read_text()))
        with pytest.raises(DmgalError, match=r"store version=3\n.*store version=2, as saved\n.*build it again"):
            StoredClips(old, catalog.split("val"), CLIPS)

    @pytest.mark.parametrize("library", ["torch", "pillow", "av"])
    def test_other_library_versions_raise(self, catalog, built, monkeypatch, library):
        version, asks = store_content.version, {"torch": store_content, "pillow": frame_images, "av": pyav_video}
        monkeypatch.setattr(asks[library], "version", lambda name: "0.1" if name == library else version(name))
        for open_it in (
            lambda: StoredClips(built, catalog.split("val"), CLIPS),
            lambda: StoredFrames(built, catalog.split("train")),
        ):
            saved = version(library).split("+")[0]
            with pytest.raises(DmgalError, match=rf"='0\.1'\n.*version of {library}='{saved}'"):
                open_it()

    def test_device_suffix_of_torch_version_is_ignored(self, catalog, built, monkeypatch):
        version = store_content.version
        monkeypatch.setattr(store_content, "version", lambda name: version(name).partition("+")[0] + "+cu999")
        monkeypatch.setattr(store_content, "version", lambda name: "2.13.0+cu999" if name == "torch" else version(name))
        if version("torch").partition("+")[0] != "2.13.0":
            pytest.skip("written for one version of torch")
        StoredClips(built, catalog.split("val"), CLIPS)

    def test_missing_store_and_foreign_files_raise(self, catalog, tmp_path):
        with pytest.raises(DmgalError, match=r"There is no store in .*test\.\n(.|\n)*dmgal store"):
            StoredClips(tmp_path, catalog.split("val"), CLIPS)
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "mine.txt").write_text("mine")
        with pytest.raises(DmgalError, match=r"mine\.txt, but no key\.json"):
            rebuild(catalog, tmp_path)
        assert (tmp_path / "test" / "mine.txt").read_text() == "mine"

    def test_other_transform_raises(self, catalog, built):
        with pytest.raises(DmgalError, match="expected: a TestTransform"):
            VideoDataset(ClipSource(catalog.split("val"), store=built), FrameSampler(4, torch.clone))

    @pytest.mark.parametrize("options", [{"short_side": 0}, {"quality": 0}, {"quality": 96}])
    def test_invalid_settings_raise(self, options):
        with pytest.raises(DmgalError, match="cannot be stored like this"):
            TrainingFrames(**options)

    def test_zero_workers_raise(self, catalog, tmp_path):
        with pytest.raises(DmgalError, match="workers=0"):
            build_store(catalog, tmp_path, CLIPS, workers=0)


class TestDamage:
    """Wrong bytes, which reads detect and builds with ``check`` repair."""

    @pytest.mark.parametrize("part", ["test", "train"])
    def test_wrong_byte_is_detected_and_repaired(self, copied, part):
        catalog, folder = copied
        split = catalog.split("val" if part == "test" else "train")
        record = read_records(folder / part)[split.videos[1]]
        data = folder / part / DATA
        middle = record.offset + record.length // 2
        content = bytearray(data.read_bytes())
        content[middle] ^= 1
        data.write_bytes(content)

        def read(video: int) -> torch.Tensor:
            if part == "test":
                return StoredClips(folder, split, CLIPS).read(video)
            return StoredFrames(folder, split).read(video, range)

        others = [read(video) for video in (0, 2)]
        with pytest.raises(DmgalError, match=r"is damaged\.\n(.|\n)*checksum(.|\n)*--check"):
            read(1)
        assert sum(report.made for report in rebuild(catalog, folder)) == 0  # not checked
        assert sum(report.made for report in rebuild(catalog, folder, check=True)) == 1
        assert all(torch.equal(read(video), clip) for video, clip in zip((0, 2), others, strict=True))
        assert read(1).any()

    @pytest.mark.parametrize("place", [0, 7, 8, 15])
    def test_wrong_table_of_frames_is_detected(self, place):
        block = bytearray(pack([b"one", b"two"]))
        block[place] ^= 1
        assert unpack(np.frombuffer(bytes(block), np.uint8), 2, [0, 1]) is None

    @pytest.mark.parametrize(("lines", "cut"), [(1, 2), (1, 60), (3, 5)])
    def test_build_resumes_from_truncated_index(self, copied, lines, cut):
        catalog, folder = copied
        wanted, index = contents(folder), folder / "test" / INDEX
        kept = index.read_bytes().splitlines(keepends=True)
        index.write_bytes(b"".join(kept[: 13 - lines])[:-cut])
        with pytest.raises(DmgalError, match="is not in it"):
            [StoredClips(folder, catalog.split(split), CLIPS) for split in ("val", "test")]
        assert rebuild(catalog, folder)[0].made == lines
        assert contents(folder) == wanted

    @pytest.mark.parametrize("made", [1, 12])
    def test_build_resumes_from_truncated_or_missing_data(self, copied, made):
        catalog, folder = copied
        wanted, data = contents(folder), folder / "test" / DATA
        data.write_bytes(data.read_bytes()[:-100]) if made == 1 else data.unlink()
        with pytest.raises(DmgalError, match="is not in it"):
            StoredClips(folder, catalog.split("test"), CLIPS)
        assert rebuild(catalog, folder)[0].made == made
        assert contents(folder) == wanted

    def test_garbage_after_last_record_is_truncated(self, copied):
        catalog, folder = copied
        wanted = contents(folder)
        for name in (DATA, INDEX):
            with (folder / "test" / name).open("ab") as file:
                file.write(bytes(72))  # zeros, as after a power loss while the file grew
        assert rebuild(catalog, folder)[0].made == 0
        assert contents(folder) == wanted

    @given(st.integers(0, 11), st.integers(0, 100), st.integers(1, 255))
    def test_damaged_record_is_ignored(self, built, record, byte, flip):
        lines = (built / "test" / INDEX).read_bytes().splitlines(keepends=True)
        wanted = read_records(built / "test")
        content = bytearray(lines[record])
        content[byte] ^= flip
        folder = built.parent / "one wrong record"
        folder.mkdir(exist_ok=True)
        (folder / INDEX).write_bytes(b"".join([*lines[:record], content, *lines[record + 1 :]]))
        if not (folder / DATA).exists():
            (folder / DATA).symlink_to(built / "test" / DATA)
        left = list(wanted.values())[:record] + list(wanted.values())[record + 1 :]
        assert list(read_records(folder).values()) == left
