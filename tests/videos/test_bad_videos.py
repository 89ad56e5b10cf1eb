"""Unreadable videos raise an error, or are skipped and logged, for any number of workers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from dmgal.backbones import VideoState
from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.episodes.sampler import EpisodeIndices, EpisodeSampler
from dmgal.errors import DmgalError
from dmgal.videos import VideoCatalog
from dmgal.videos.bad_videos import BadVideos, without_bad
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding import clip as transforms
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import FrameSampler

NUM_CLASSES, PER_CLASS = 3, 6
BAD = (1, 2, 9)  # two neighbors of the first class, one of the second


@pytest.fixture(scope="module")
def catalog(tmp_path_factory, write_frames) -> VideoCatalog:
    """All frames of video ``v`` show the number ``v``; three videos lost theirs."""
    root = tmp_path_factory.mktemp("videos")
    for video in range(NUM_CLASSES * PER_CLASS):
        folder = root / f"class{video // PER_CLASS}" / f"video{video:02}"
        write_frames(folder, [video] * 4)
        if video in BAD:
            (folder / "frame1.png").write_bytes(b"no picture")
            (folder / "frame2.png").write_bytes(b"no picture")
    return VideoCatalog.from_folders(root)


def as_decoded(clip, generator=None):
    return clip


def episodes(catalog: VideoCatalog, on_bad_video: str, *chosen: EpisodeIndices) -> EpisodeDataset:
    sampler = list(chosen) or EpisodeSampler(catalog.labels, 2, 1, 2, 8, seed=3)
    return EpisodeDataset(ClipSource(catalog, on_bad_video=on_bad_video), sampler, FrameSampler(4, as_decoded, seed=1))


def shown(episode, frame_numbers) -> list[int]:
    return [frame_numbers(clip)[0] for clip in torch.cat([episode.support, episode.query])]


def test_next_unused_videos_of_the_class_replace_bad_ones(catalog, frame_numbers, caplog):
    episode = EpisodeIndices((0, 1), (1, 9), (0, 1), (2, 3, 6, 10), (0, 0, 1, 1))
    data = episodes(catalog, "skip", episode)
    # Videos 2 and 3 after 1 are used, so 4 replaces it. For 2, 3 and 4 are used, so 5. For 9, 10 is used, so 11.
    assert shown(data[0], frame_numbers) == [4, 11, 5, 3, 6, 10]
    assert data.bad_videos.met == [1, 2, 9]
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 3
    assert logged[0].startswith("bad video 1: ") and "class0/video01: frame frame1.png" in logged[0]
    assert shown(data[0], frame_numbers) == [4, 11, 5, 3, 6, 10]
    assert len(caplog.records) == 3, "each is logged once"


def test_replacement_is_of_no_group_of_the_other_side(catalog, frame_numbers):
    grouped = catalog.with_groups([f"person {video % 3}" for video in range(len(catalog))])
    episode = EpisodeIndices((0, 1), (1, 7), (0, 1), (0, 6), (0, 1))  # person 1 in the support, person 0 in the query
    # 2 is bad as well, and 3 shows person 0, so 4 replaces 1.
    assert shown(episodes(grouped, "skip", episode)[0], frame_numbers) == [4, 7, 0, 6]
    assert shown(episodes(catalog, "skip", episode)[0], frame_numbers) == [3, 7, 0, 6]


def test_replacement_wraps_around_the_class(catalog, frame_numbers):
    bad = BadVideos(catalog, "skip")

    def read(position: int, video: int) -> torch.Tensor:
        if video == 5:
            raise VideoError(catalog.path(video), "gone")
        return torch.tensor(video)

    assert [int(clip) for clip in bad.clips((5, 0, 7), read)] == [1, 0, 7]


def test_episodes_do_not_depend_on_the_workers(catalog, frame_numbers, caplog):
    found = []
    for workers in (0, 2):
        data = episodes(catalog, "skip")
        found.append([shown(e, frame_numbers) for e in DataLoader(data, batch_size=None, num_workers=workers)])
        assert set(data.bad_videos.met) <= set(BAD) and data.bad_videos.met, "flags are shared with workers"
    assert found[0] == found[1]
    wanted = [(*indices.support, *indices.query) for indices in data.sampler]
    assert len(wanted) == len(found[0]) and any(set(BAD) & set(videos) for videos in wanted)
    for videos, clips in zip(wanted, found[0], strict=True):
        assert len(set(clips)) == len(clips) and not set(clips) & set(BAD)
        assert [clip // PER_CLASS for clip in clips] == [video // PER_CLASS for video in videos]
        assert all(clip == video for clip, video in zip(clips, videos, strict=True) if video not in BAD)
    assert "bad video 1: " in caplog.text


def test_error_names_the_file_and_the_remedy(catalog):
    data = episodes(catalog, "error", EpisodeIndices((0, 1), (1, 6), (0, 1), (3, 7), (0, 1)))
    with pytest.raises(VideoError, match=r"class0/video01(.|\n)*dmgal prepare(.|\n)*on-bad-video skip"):
        data[0]
    with pytest.raises(VideoError, match="video01"):
        VideoDataset(ClipSource(catalog), FrameSampler(4, as_decoded))[1]


def test_a_class_without_another_video_is_an_error(catalog):
    def read(position: int, video: int) -> torch.Tensor:
        raise VideoError(catalog.path(video), "gone")

    with pytest.raises(VideoError, match="video04"):
        BadVideos(catalog, "skip").clips((4,), read)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_videos_are_removed_from_encoded_catalogs(catalog, workers):
    clips = VideoDataset(ClipSource(catalog, on_bad_video="skip"), FrameSampler(4, transforms.TestTransform(32)))
    batches = torch.cat(list(DataLoader(clips, batch_size=4, num_workers=workers)))
    assert batches.shape == (18, 4, 3, 32, 32) and not batches[[*BAD]].any()
    assert clips.bad_videos.met == [*BAD]
    rest, states = without_bad(catalog, VideoState(number=torch.arange(18)), clips.bad_videos.met)
    readable = [video for video in range(18) if video not in BAD]
    assert states["number"].tolist() == readable and rest.videos == tuple(catalog.videos[video] for video in readable)
    assert rest.labels.tolist() == [video // PER_CLASS for video in readable]
    assert without_bad(catalog, states, []) == (catalog, states)


def test_a_class_of_bad_videos_only_is_named(catalog):
    with pytest.raises(DmgalError, match=r"left without a video(.|\n)*1 after leaving out 6 of 18 videos: class1\n"):
        without_bad(catalog, VideoState(number=torch.arange(18)), range(6, 12))
