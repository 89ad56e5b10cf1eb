"""Tests of datasets on real files: frames, labels, independence of the number of workers, and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, default_convert

from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.episodes.sampler import EpisodeSampler, ReversalSampler
from dmgal.errors import DmgalError
from dmgal.loader import Loader
from dmgal.videos import VideoCatalog
from dmgal.videos import dataset as dataset_module
from dmgal.videos.dataset import CACHE_BYTES, ClipReader, ClipSource, VideoDataset
from dmgal.videos.decoding import clip as transforms
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import FrameSampler, TrainTransform, uniform_frames

NUM_CLASSES, PER_CLASS, LENGTH = 3, 4, 12
AS_DECODED = (64, 128)


def as_decoded(clip: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    return clip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory, write_video, write_frames) -> VideoCatalog:
    """Return a catalog in which video ``v`` of class ``c`` shows the numbers from ``20 * (4 c + v)``.

    The last video of each class is a frame folder.
    """
    root = tmp_path_factory.mktemp("videos")
    for c in range(NUM_CLASSES):
        for v in range(PER_CLASS):
            numbers = range(20 * (PER_CLASS * c + v), 20 * (PER_CLASS * c + v) + LENGTH)
            if v == PER_CLASS - 1:
                write_frames(root / f"class{c}" / f"video{v}", numbers)
            else:
                write_video(root / f"class{c}" / f"video{v}.mp4", numbers, options={"bf": "2"})
    return VideoCatalog.from_folders(root)


def episodes(catalog: VideoCatalog, training: bool, transform=None, **options) -> EpisodeDataset:
    sampler = EpisodeSampler(catalog.labels, 2, 1, 2, 6, seed=5, class_names=catalog.class_names)
    frames = FrameSampler(4, transform or as_decoded, 9 if training else None)
    return EpisodeDataset(ClipSource(catalog, **options), sampler, frames)


def fixed_clips(catalog: VideoCatalog, transform, num_frames: int = 4) -> VideoDataset:
    return VideoDataset(ClipSource(catalog), FrameSampler(num_frames, transform))


def same(one, two) -> bool:
    names = ("support", "support_labels", "query", "query_labels")
    return one.class_names == two.class_names and all(torch.equal(getattr(one, n), getattr(two, n)) for n in names)


def test_episode_contains_the_sampled_videos(catalog, frame_numbers):
    data = episodes(catalog, training=False)
    assert len(data) == 6
    middle = uniform_frames(LENGTH, 4)
    for number in range(len(data)):
        episode, indices = data[number], data.sampler[number]
        assert episode.support.shape == (2, 4, 3, *AS_DECODED) and episode.query.shape == (4, 4, 3, *AS_DECODED)
        assert episode.support.dtype == torch.uint8
        assert episode.class_names == tuple(f"class{c}" for c in indices.classes)
        assert episode.classes.tolist() == list(indices.classes)
        assert episode.support_labels.tolist() == [0, 1] and episode.query_labels.tolist() == [0, 0, 1, 1]
        shown = [frame_numbers(clip) for clip in torch.cat([episode.support, episode.query])]
        assert shown == [[20 * v + f for f in middle] for v in indices.support + indices.query]


def test_training_frames_vary_within_their_segments(catalog, frame_numbers):
    data = episodes(catalog, training=True)
    shown = set()
    for number in range(len(data)):
        for clip in data[number].support:
            frames = [n % 20 for n in frame_numbers(clip)]
            assert all(3 * i <= frame < 3 * i + 3 for i, frame in enumerate(frames))
            shown.add(tuple(frames))
    assert len(shown) > 6


def test_episode_depends_on_seed_and_index_only(catalog):
    transform = TrainTransform(32, flip=True, color_jitter=0.3)
    data, again = episodes(catalog, True, transform), episodes(catalog, True, transform)
    wanted = [data[number] for number in range(6)]
    assert all(same(again[number], wanted[number]) for number in reversed(range(6)))
    other = EpisodeDataset(ClipSource(catalog), data.sampler, FrameSampler(4, transform, seed=10))
    assert not torch.equal(other[0].support, wanted[0].support)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_episodes_are_independent_of_workers(catalog, context):
    data = episodes(catalog, True, TrainTransform(32, color_jitter=0.3), cache_bytes=CACHE_BYTES * (context == "spawn"))
    loader = DataLoader(
        data, batch_size=None, num_workers=2 if context == "fork" else 1, multiprocessing_context=context
    )
    loaded = list(loader)
    assert len(loaded) == len(data)
    assert all(same(episode, data[number]) for number, episode in enumerate(loaded))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_workers_start_no_extra_threads(catalog, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    workers = 4
    command = [sys.executable, str(Path(__file__).with_name("loading_threads.py")), str(catalog.root)]
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([*command, str(workers), decoder], capture_output=True, text=True, env=free, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["ours"] <= workers + 1, "one for each worker, which hands out work"
    assert len(counts["loader"]) == workers and 1 <= len(counts["pool"]) <= 2
    own = {"pyav": 0, "decord": 1}[decoder]  # decord always starts one
    for threads, of_python in counts["loader"] + counts["pool"]:
        # Other threads pass on results and memory or wait for the end of the parent.
        assert of_python <= 3 and threads <= of_python + own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU, and there is none")
def test_episodes_can_be_pinned(catalog):
    data = episodes(catalog, True, TrainTransform(32))
    loader = DataLoader(data, batch_sampler=[[0, 1]], collate_fn=list, num_workers=1, pin_memory=True)
    (loaded,) = list(loader)
    assert all(episode.support.is_pinned() and episode.query.is_pinned() for episode in loaded)
    assert all(same(episode, data[number]) for number, episode in enumerate(loaded))


def test_reversal_tasks_load(catalog):
    sampler = ReversalSampler([(0, 2)], catalog.labels, 1, 1, 1, 3, seed=0)
    data = EpisodeDataset(ClipSource(catalog), sampler, FrameSampler(2, transforms.TestTransform(16)))
    assert {frozenset(episode.class_names) for episode in (data[i] for i in range(3))} == {
        frozenset(("class0", "class2"))
    }


def test_cache_reads_each_video_once_with_equal_clips(catalog, monkeypatch):
    reads = []
    read_clip = dataset_module.read_clip
    monkeypatch.setattr(dataset_module, "read_clip", lambda path, *rest: reads.append(path) or read_clip(path, *rest))
    plain, cached = episodes(catalog, True), episodes(catalog, True, cache_bytes=CACHE_BYTES)
    wanted = [plain[number] for number in range(6)]
    reads.clear()
    for _ in range(2):
        assert all(same(cached[number], wanted[number]) for number in range(6))
    assert len(reads) == len(set(reads)) > 6


def test_cache_respects_its_size_limit(catalog, monkeypatch):
    asked = []
    read_clip = dataset_module.read_clip
    monkeypatch.setattr(
        dataset_module, "read_clip", lambda p, c, *rest: asked.append((p.stem, c is range)) or read_clip(p, c, *rest)
    )
    one = LENGTH * 3 * AS_DECODED[0] * AS_DECODED[1]
    reader = ClipReader(ClipSource(catalog, cache_bytes=2 * one + one // 2), FrameSampler(4, as_decoded))
    for _ in range(2):
        for video in range(4):
            assert reader.read(video, lambda n: [0, n - 1]).shape == (2, 3, *AS_DECODED)
    # Two videos fit and the third one closes the cache. Later only the last two are read again.
    assert asked == [
        ("video0", True),
        ("video1", True),
        ("video2", True),
        ("video3", False),
        ("video2", False),
        ("video3", False),
    ]


def test_cached_clip_is_safe_from_modification(catalog):
    reader = ClipReader(ClipSource(catalog, cache_bytes=10**8), FrameSampler(4, as_decoded))
    first = reader.read(0, range).clone()
    reader.read(0, range).zero_()
    assert torch.equal(reader.read(0, range), first)


def test_video_dataset_returns_fixed_clips(catalog, frame_numbers):
    data = fixed_clips(catalog, as_decoded)
    assert len(data) == NUM_CLASSES * PER_CLASS
    for video in range(len(data)):
        assert frame_numbers(data[video]) == [20 * video + f for f in uniform_frames(LENGTH, 4)]
    batches = list(DataLoader(fixed_clips(catalog, transforms.TestTransform(24)), batch_size=5))
    assert [tuple(batch.shape) for batch in batches] == [(n, 4, 3, 24, 24) for n in (5, 5, 2)]


def test_video_dataset_equals_episode_dataset(catalog):
    transform = transforms.TestTransform(32, 1.2)
    data, single = episodes(catalog, False, transform), fixed_clips(catalog, transform)
    for number in range(3):
        indices = data.sampler[number]
        assert torch.equal(data[number].query, torch.stack([single[video] for video in indices.query]))


def broken(catalog: VideoCatalog, folder: Path) -> VideoCatalog:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "1.mp4").write_text("no video")
        (folder / name / "2.mp4").write_bytes(catalog.path(0).read_bytes())
    return VideoCatalog.from_folders(folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_video_is_named(catalog, tmp_path, workers):
    bad = broken(catalog, tmp_path)
    sampler = EpisodeSampler(bad.labels, 2, 1, 1, 2, seed=0)
    data = EpisodeDataset(ClipSource(bad), sampler, FrameSampler(4, as_decoded))
    with pytest.raises(VideoError, match=r"^Cannot read the video .*[ab]/1\.mp4\.\n(.|\n)*what to do:") as caught:
        list(Loader(data, batch_size=None, collate_fn=default_convert, num_workers=workers))
    assert "Traceback" not in str(caught.value)


def test_invalid_indices_and_counts_raise(catalog):
    for data in (episodes(catalog, False), fixed_clips(catalog, as_decoded)):
        for outside in (-1, len(data)):
            with pytest.raises(IndexError):
                data[outside]
    with pytest.raises(DmgalError, match="num_frames=0"):
        fixed_clips(catalog, as_decoded, num_frames=0)
    with pytest.raises(DmgalError, match=r"cannot be read from the store(.|\n)*a TestTransform"):
        VideoDataset(ClipSource(catalog, store="store"), FrameSampler(4, as_decoded))


def test_real_clips(test_data):
    train = VideoCatalog.from_folders(test_data / "videos" / "ssv2_mini").split("train")
    sampler = EpisodeSampler(train.labels, 5, 1, 1, 1, seed=0)
    episode = EpisodeDataset(ClipSource(train), sampler, FrameSampler(8, TrainTransform(64), seed=0))[0]
    assert episode.support.shape == (5, 8, 3, 64, 64)
    assert episode.support.float().std() > 10
