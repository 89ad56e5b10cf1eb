"""Evaluation on any number of processes: each encodes some chunks of videos and answers some tasks; all get everything.

Chunks have the same bounds and tasks the same numbers whatever the number of processes, and what comes back is in the
order of one process, so the result is the same to the last bit (for equal thread counts).
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from dmgal.backbones import VideoState
from dmgal.episodes import Evaluation, FewShotRecognizer, encode_videos, evaluate
from dmgal.episodes.evaluation import LOOK_EVERY, Answers
from dmgal.episodes.sampler import EpisodeIndices, TaskSampler
from dmgal.recipes.training.signals import ignore_in_worker

CHUNK = 32
"""Videos that are encoded in one batch."""


def encode_shared(
    recognizer: FewShotRecognizer,
    clips: Dataset[Tensor],
    *,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> VideoState:
    """States of all clips ``(T, 3, H, W)`` in their order, on every process, of which each encoded its share."""
    process, videos = PartialState(), range(len(clips))  # type: ignore[arg-type]
    shares = [_chunks_of(videos, rank, process.num_processes, CHUNK) for rank in range(process.num_processes)]
    mine = shares[process.process_index] or shares[0]  # more processes than chunks: an idle one learns the shapes
    options = {"batch_size": CHUNK, "num_workers": num_workers, "device": device, "progress": progress}
    states = encode_videos(recognizer, Subset(clips, mine), worker_init_fn=ignore_in_worker, **options)  # type: ignore[arg-type]
    if process.num_processes == 1:
        return states
    return VideoState({name: _merged(tensor, shares, process.device) for name, tensor in states.items()})


def evaluate_shared(
    recognizer: FewShotRecognizer,
    states: VideoState,
    sampler: TaskSampler,
    device: torch.device | str = "cpu",
    progress: bool = True,
    data: str = "",
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """What `evaluate` gives, on every process, of which each answered its share.

    `evaluate` answers tasks in groups, so a share consists of whole groups; few tasks are one group.
    """
    process, world = PartialState(), PartialState().num_processes
    if world == 1:
        return evaluate(recognizer, states, sampler, device, progress, data, dtype=dtype)
    shares = [_chunks_of(range(len(sampler)), rank, world, LOOK_EVERY) for rank in range(world)]
    mine = shares[process.process_index] or shares[0]  # an idle process learns the shapes
    tasks: TaskSampler = _Share(sampler, mine)  # type: ignore[assignment]
    evaluation = evaluate(recognizer, states, tasks, device, progress, dtype=dtype)
    fingerprint = blake2b(data.encode(), digest_size=8)
    for task in sampler:
        fingerprint.update(repr(task).encode())
    assert evaluation.answers is not None
    answers = _merged_answers(evaluation.answers, len(mine), shares, process.device)
    return Evaluation(_merged(evaluation.accuracies, shares, process.device), fingerprint.hexdigest(), answers)


def _merged_answers(mine: Answers, num_tasks: int, shares: list[list[int]], device: torch.device) -> Answers:
    """Every task has as many queries as the others."""
    num_queries = len(mine.video) // num_tasks
    names = ("video", "truth", "predicted")
    columns = {n: _merged(getattr(mine, n).view(num_tasks, num_queries), shares, device).flatten() for n in names}
    episode = torch.arange(sum(map(len, shares)), dtype=torch.int32).repeat_interleave(num_queries)
    return Answers(episode, **columns, offered=_merged(mine.offered, shares, device))


def alike_everywhere(model: nn.Module) -> None:
    """Gives every process the buffers of the first one: batch norms in training mode have seen other tasks on each."""
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def any_process(flags: Tensor) -> Tensor:
    """Flags ``(N,)`` that are set on at least one process."""
    process = PartialState()
    if process.num_processes == 1:
        return flags
    everywhere = gather(flags.to(process.device, torch.uint8)[None])  # (processes, N)
    return everywhere.amax(0).bool().cpu()


class _Share:
    """A sampler that gives some of its tasks only; it keeps its length, by which `evaluate` chooses how to compare."""

    def __init__(self, sampler: TaskSampler, numbers: list[int]) -> None:
        self._sampler, self._numbers = sampler, numbers

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[EpisodeIndices]:
        return (self._sampler[number] for number in self._numbers)

    def __getitem__(self, number: int) -> EpisodeIndices:
        return self._sampler[number]


def _chunks_of(items: range, rank: int, world: int, size: int) -> list[int]:
    """Every ``world``-th chunk. Only the last may be short, and it stays the last of its share, so bounds are kept."""
    starts = range(rank * size, len(items), world * size)
    return [item for start in starts for item in items[start : start + size]]


def _merged(mine: Tensor, shares: list[list[int]], device: torch.device) -> Tensor:
    """Rows of all processes in the order of ``shares``, padded on the way to the longest share."""
    longest, count = max(map(len, shares)), sum(map(len, shares))
    padding = mine.new_zeros(longest - len(mine), *mine.shape[1:])
    parts = gather(torch.cat([mine, padding]).to(device).contiguous()).cpu().split(longest)
    merged = mine.new_empty(count, *mine.shape[1:])
    for part, places in zip(parts, shares, strict=True):
        merged[torch.tensor(places, dtype=torch.long)] = part[: len(places)]
    return merged
