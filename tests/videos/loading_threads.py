"""Program that loads episodes with worker processes and prints the number of threads of each process as JSON.

    python loading_threads.py VIDEOS WORKERS DECODER

Workers count their threads while a frame is converted, when the decoder has started all of its threads. It is a
separate process, because a test process has threads of other tests.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path

import av
import torch
from torch.utils.data import DataLoader, Dataset

from dmgal.episodes.episode import Episode
from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.episodes.sampler import EpisodeSampler
from dmgal.parallel import completed
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource
from dmgal.videos.decoding.base import Image, UprightRGB
from dmgal.videos.decoding.clip import FrameSampler, TrainTransform
from dmgal.videos.decoding.video import DecoderName, read_clip

Counts = tuple[int, int, int]
"""Process ID, maximum number of threads while decoding, and number of Python threads among them."""
most = 0
convert = UprightRGB.__call__


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def converting(self: UprightRGB, frame: av.VideoFrame) -> Image:
    global most
    most = max(most, threads())
    return convert(self, frame)


def counted() -> Counts:
    return os.getpid(), most, threading.active_count()


class Counted(Dataset[tuple[Counts, Episode]]):
    """Dataset of episodes, each with the thread counts of the process that loaded it."""

    def __init__(self, episodes: EpisodeDataset) -> None:
        self.episodes = episodes

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> tuple[Counts, Episode]:
        episode = self.episodes[number]
        torch.rand(200, 200) @ torch.rand(200, 200)
        return counted(), episode


def decode(decoder: DecoderName, path: Path) -> Counts:
    UprightRGB.__call__ = converting  # type: ignore[method-assign]  # a spawned process has the original class
    read_clip(path, lambda count: [0, count - 1], decoder=decoder)
    torch.rand(200, 200) @ torch.rand(200, 200)
    return counted()


def largest(counts: list[Counts]) -> list[list[int]]:
    """Return the maximum number of threads and of Python threads for each process."""
    processes = {process for process, *_ in counts}
    return [[max(row[i] for row in counts if row[0] == process) for i in (1, 2)] for process in sorted(processes)]


def main(videos: str, workers: int, decoder: DecoderName) -> dict[str, object]:
    UprightRGB.__call__ = converting  # type: ignore[method-assign]
    catalog = VideoCatalog.from_folders(videos)
    sampler = EpisodeSampler(catalog.labels, 2, 1, 1, 8 * workers, seed=0)
    data = EpisodeDataset(
        ClipSource(catalog, decoder), sampler, FrameSampler(4, TrainTransform(32, color_jitter=0.2), 0)
    )
    before, ours, loader = threads(), 0, []
    for count, episode in DataLoader(
        Counted(data), batch_size=None, num_workers=workers, multiprocessing_context="fork"
    ):
        assert episode.support.dtype == torch.uint8
        ours = max(ours, threads() - before)
        loader.append(count)
    paths = [catalog.path(video) for video in range(len(catalog)) if catalog.path(video).is_file()]
    pool = list(completed(partial(decode, decoder), paths, min(2, workers)))  # importing torch is slow
    return {"ours": ours, "loader": largest(loader), "pool": largest(pool)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
