"""Program that fills a cache and can kill itself while doing so.

    python killed_cache.py FOLDER RANK COUNT KILL_AT

``KILL_AT``: index of the clip that kills the process when it is read, -1 for never. Processes synchronize by files.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation.cache import Processes, StateCache
from dmgal.episodes.evaluation.identity import describe
from dmgal.episodes.heads import BiMHM

VIDEOS, BLOCK = 22, 4


class Clips(Dataset[Tensor]):
    """Random clips, one of which kills the process when it is read."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at = kill_at

    def __len__(self) -> int:
        return VIDEOS

    def __getitem__(self, video: int) -> Tensor:
        if video == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(video)
        return torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=generator)


def recognizer() -> FewShotRecognizer:
    return FewShotRecognizer(FrameEncoder(load_backbone("tiny-clip")), BiMHM("video"))


def cache(folder: Path, model: FewShotRecognizer, **options: object) -> StateCache:
    names = [f"video {number}" for number in range(VIDEOS)]
    return StateCache(folder, describe(model, clips="random"), names, BLOCK, **options)  # type: ignore[arg-type]


def waiting_by_files(folder: Path, rank: int, count: int):
    """Return a function that waits until all processes have called it equally often."""
    calls = 0

    def wait() -> None:
        nonlocal calls
        calls += 1
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{calls}.{rank}").touch()
        while len(list(folder.glob(f"{calls}.*"))) < count:
            time.sleep(0.02)

    return wait


def main() -> None:
    folder, rank, count, kill_at = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    processes = Processes(rank, count, waiting_by_files(folder.with_name("waiting"), rank, count))
    model = recognizer()
    result = cache(folder, model).fill(model, Clips(kill_at), progress=False, processes=processes)
    print(result.encoded)


if __name__ == "__main__":
    main()
