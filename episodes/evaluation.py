"""Accuracy over episodes: every video is encoded once, then any number of tasks is answered from the states.

Exact, because nothing of a task is in a video's state. The same seeded episodes are used for every method, so two
methods are compared by their difference episode by episode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..backbones.video_state import VideoState
from .recognizer import FewShotRecognizer
from .sampler import EpisodeIndices, TaskSampler


@dataclass(frozen=True)
class Estimate:
    """A mean in percent with the half-width of its 95 % interval over episodes (one trained model, these classes)."""

    mean: float
    half_width: float

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """From one value per episode in ``[-1, 1]``."""
        values = 100 * values.double()
        spread = values.std().item() if len(values) > 1 else math.inf
        return Estimate(values.mean().item(), 1.96 * spread / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of every episode, ``(E,)`` in ``[0, 1]``; ``episodes`` is a hash of which they were."""

    accuracies: Tensor
    episodes: str

    @property
    def accuracy(self) -> Estimate:
        return Estimate.of(self.accuracies)


@torch.no_grad()
def encode_videos(
    recognizer: FewShotRecognizer,
    videos: Dataset[Tensor],
    batch_size: int = 32,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> VideoState:
    """States of all videos of a data set of clips ``(T, 3, H, W)``, in its order, kept on the CPU."""
    recognizer.eval()
    pinned = torch.device(device).type == "cuda"
    loader = DataLoader(videos, batch_size=batch_size, num_workers=num_workers, pin_memory=pinned)
    bar = tqdm(loader, desc="encode", unit="batch", leave=False, disable=not progress)
    return VideoState.cat([recognizer.encode(batch.to(device, non_blocking=pinned)).to("cpu") for batch in bar])


@torch.no_grad()
def evaluate(
    recognizer: FewShotRecognizer,
    states: VideoState,
    sampler: TaskSampler,
    device: torch.device | str = "cpu",
    progress: bool = True,
    data: str = "",
) -> Evaluation:
    """Accuracy of a recognizer on every episode of a sampler, from the states of the videos.

    ``data`` says whose videos they are; results on other data are then known to be on other episodes.
    """
    recognizer.eval()
    bar = tqdm(sampler, desc="episodes", unit="episode", leave=False, disable=not progress)
    accuracies, fingerprint = [], blake2b(data.encode(), digest_size=8)
    for episode in bar:
        accuracies.append(_accuracy(recognizer, states, episode, device))
        fingerprint.update(repr(episode).encode())
    return Evaluation(torch.tensor(accuracies, dtype=torch.float64), fingerprint.hexdigest())


def paired_difference(first: Evaluation, second: Evaluation) -> Estimate:
    """``first`` minus ``second`` in points, with the interval of the paired difference.

    Raises:
        ValueError: the two were not evaluated on the same episodes.
    """
    if first.episodes != second.episodes:
        raise ValueError(f"different episodes: {first.episodes} and {second.episodes}")
    return Estimate.of(first.accuracies - second.accuracies)


def _accuracy(
    recognizer: FewShotRecognizer, states: VideoState, episode: EpisodeIndices, device: torch.device | str
) -> float:
    support, query = (_select(states, places, device) for places in (episode.support, episode.query))
    output = recognizer.compare(support, torch.tensor(episode.support_labels, device=device), query)
    right = output.logits.argmax(1).cpu() == torch.tensor(episode.query_labels)
    return right.double().mean().item()


def _select(states: VideoState, places: Iterable[int], device: torch.device | str) -> VideoState:
    return states.select(torch.tensor(tuple(places))).to(device)
