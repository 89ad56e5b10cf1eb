"""Evaluation on any number of processes. Each encodes some chunks of videos and answers some tasks; all get everything.

The bounds of chunks and the indices of tasks do not depend on the number of processes, and results are returned in the
order of one process. So the result is bit-identical for equal thread counts.
"""

from __future__ import annotations

import signal
from hashlib import blake2b

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather
from torch import Tensor, nn
from torch.utils.data import Subset

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, encode_videos, evaluate
from dmgal.episodes.evaluation.accuracy import LOOK_EVERY, Answers
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.sampler import IndexSampler
from dmgal.recipes.run.data import RememberedClips
from dmgal.videos.dataset import VideoDataset

CHUNK = 32
"""Number of videos encoded in one batch."""


def encode_shared(
    recognizer: FewShotRecognizer,
    clips: VideoDataset | RememberedClips,
    *,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> PrecomputedStates:
    """Return states of all clips ``(T, 3, H, W)`` in order on every process, after each encoded its share."""
    process, videos = PartialState(), range(len(clips))
    shares = [_chunks_of(videos, rank, process.num_processes, CHUNK) for rank in range(process.num_processes)]
    mine = shares[process.process_index] or shares[0]  # a process without chunks learns the shapes from these
    states = encode_videos(
        recognizer,
        Subset(clips, mine),
        batch_size=CHUNK,
        num_workers=num_workers,
        device=device,
        progress=progress,
        worker_init_fn=ignore_in_worker,
    )
    if process.num_processes == 1:
        return states
    return states.map(lambda tensor: _merge(tensor, shares, process.device))


def evaluate_shared(
    recognizer: FewShotRecognizer,
    states: PrecomputedStates,
    sampler: IndexSampler,
    device: torch.device | str = "cpu",
    progress: bool = True,
    data: str = "",
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Return the result of `evaluate` on every process, after each answered its share.

    `evaluate` answers tasks in groups, so shares consist of complete groups. A few tasks are one group.
    """
    process, world = PartialState(), PartialState().num_processes
    if world == 1:
        return evaluate(recognizer, states, sampler, device, progress, data, dtype=dtype)
    shares = [_chunks_of(range(len(sampler)), rank, world, LOOK_EVERY) for rank in range(world)]
    mine = shares[process.process_index] or shares[0]  # a process without tasks learns the shapes from these
    evaluation = evaluate(recognizer, states, sampler, device, progress, dtype=dtype, tasks=mine)
    fingerprint = blake2b(data.encode(), digest_size=8)
    for index in range(len(sampler)):
        fingerprint.update(repr(sampler[index]).encode())
    assert evaluation.answers is not None
    answers = _merge_answers(evaluation.answers, len(mine), shares, process.device)
    return Evaluation(_merge(evaluation.accuracies, shares, process.device), fingerprint.hexdigest(), answers)


def _merge_answers(mine: Answers, num_tasks: int, shares: list[list[int]], device: torch.device) -> Answers:
    """Merge the answers of all processes. Every task has the same number of queries."""
    num_queries = len(mine.video) // num_tasks
    names = ("video", "truth", "predicted")
    columns = {
        name: _merge(getattr(mine, name).view(num_tasks, num_queries), shares, device).flatten() for name in names
    }
    episode = torch.arange(sum(map(len, shares)), dtype=torch.int32).repeat_interleave(num_queries)
    return Answers(episode, **columns, offered=_merge(mine.offered, shares, device))


def alike_everywhere(model: nn.Module) -> None:
    """Copy the first process's buffers to all. Batch norms in training mode see different tasks on each process."""
    if PartialState().num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)


def any_process(flags: Tensor) -> Tensor:
    """Return flags ``(N,)`` that are set on at least one process."""
    process = PartialState()
    if process.num_processes == 1:
        return flags
    everywhere = gather(flags.to(process.device, torch.uint8)[None])  # (processes, N)
    return everywhere.amax(0).bool().cpu()


def _chunks_of(items: range, rank: int, world: int, size: int) -> list[int]:
    """Return the items of every ``world``-th chunk. Only the last one may be short, so chunks keep their bounds."""
    starts = range(rank * size, len(items), world * size)
    return [item for start in starts for item in items[start : start + size]]


def _merge(mine: Tensor, shares: list[list[int]], device: torch.device) -> Tensor:
    """Gather the rows of all processes, padded to the longest share, and put them at the indices in ``shares``."""
    longest, count = max(map(len, shares)), sum(map(len, shares))
    padding = mine.new_zeros(longest - len(mine), *mine.shape[1:])
    gathered = gather(torch.cat([mine, padding]).to(device).contiguous()).cpu().split(longest)
    rows = mine.new_empty(count, *mine.shape[1:])
    for part, indices in zip(gathered, shares, strict=True):
        rows[torch.tensor(indices, dtype=torch.long)] = part[: len(indices)]
    return rows


SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


def ignore_in_worker(_: int) -> None:
    """Ignore the signals in a data worker. A signal to the group is meant for the training process, which ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
