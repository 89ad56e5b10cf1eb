"""Run as a program: loads episodes with worker processes and prints, as JSON, how many threads each process has.

    python loading_threads.py VIDEOS WORKERS

A process of its own, because a test process has threads of other tests.
"""

from __future__ import annotations

import json
import os
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from dmgal.episodes.catalog import VideoCatalog
from dmgal.episodes.dataset import EpisodeDataset
from dmgal.episodes.parallel import completed
from dmgal.episodes.sampler import EpisodeSampler
from dmgal.episodes.transforms import TrainTransform


def threads() -> int:
    return len(os.listdir(f"/proc/{os.getpid()}/task"))


class Counted(Dataset[tuple[int, int]]):
    """The threads of the process that loads an episode, once it is loaded."""

    def __init__(self, episodes: EpisodeDataset) -> None:
        self.episodes = episodes

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> tuple[int, int]:
        assert self.episodes[number].support.dtype == torch.uint8
        return os.getpid(), threads()


def counted(number: int) -> tuple[int, int]:
    torch.rand(200, 200) @ torch.rand(200, 200)
    return os.getpid(), threads()


def main(videos: str, workers: int) -> dict[str, object]:
    catalog = VideoCatalog.from_folders(videos)
    sampler = EpisodeSampler(catalog.labels, 2, 1, 1, 8 * workers, seed=0)
    data = EpisodeDataset(catalog, sampler, 4, TrainTransform(32, color_jitter=0.2), True, 0)
    before = threads()
    most: dict[str, dict[int, int]] = {"loader": {}, "pool": {}}
    for process, count in DataLoader(
        Counted(data), batch_size=None, num_workers=workers, multiprocessing_context="fork"
    ):
        most["loader"][process] = max(count, most["loader"].get(process, 0))
    ours = threads() - before
    for process, count in completed(counted, range(8 * workers), workers):
        most["pool"][process] = max(count, most["pool"].get(process, 0))
    return {"ours": ours, **{name: list(counts.values()) for name, counts in most.items()}}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
