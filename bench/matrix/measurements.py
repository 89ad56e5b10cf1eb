"""Measurements of one cell: parameters, operations, memory over time, step times and encoding throughput."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dmgal.adapters import is_added
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.episodes.evaluation.states import precompute_states, videos_at_a_time
from dmgal.recipes.run.build import count_parameters, freeze_batch_norm, visual_tower_parameters
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.folder import peak_memory_mb
from dmgal.recipes.run.text_lora import num_trained

SECONDS_BETWEEN_SAMPLES = 0.05
"""A sample takes less than 0.1 ms, so memory is measured in 0.2 % of the training's time."""
ENCODINGS = 7
"""Number of timed batches for the throughput, after one that is not timed."""


class MemorySamples:
    """Memory of this process over time, sampled in a thread while the context is open.

    If the process that started this one ends, this process receives SIGTERM, with which a training saves and ends.
    """

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(os.getppid(),), daemon=True)

    def __enter__(self) -> MemorySamples:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def as_json(self) -> dict[str, float | None]:
        """Return peak, 99th percentile and mean in MB. On a GPU its memory, else the process's resident memory."""
        values = sorted(self.megabytes)
        p99 = round(values[min(len(values) - 1, int(0.99 * len(values)))], 1) if values else None
        return {
            "max": round(max([peak_memory_mb(), *values]), 1),
            "p99": p99,
            "mean": round(statistics.fmean(values), 1) if values else None,
            "samples": len(values),
        }

    def _sample(self, parent: int) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            memory = memory_mb()
            if memory is not None:
                self.megabytes.append(memory)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return


def memory_mb() -> float | None:
    """Return the memory that torch reserves on the GPU, or else the resident memory. None if it is unknown."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / 2**20
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def parameters(recognizer: FewShotRecognizer, recipe: Recipe) -> dict[str, int]:
    """Return the numbers of trained parameters, of those added to the backbone, and of the visual tower."""
    assert isinstance(recognizer.head, nn.Module)
    added = sum(p.numel() for name, p in recognizer.encoder.backbone.named_parameters() if is_added(name))
    return {
        "trained": num_trained(recognizer, recipe),
        "added_to_backbone": added,
        "head": count_parameters(recognizer.head),
        "visual_tower": visual_tower_parameters(recognizer),
    }


def noise_task(recipe: Recipe, image_size: tuple[int, int], n_query: int | None = None) -> Episode:
    """Return a task of noise in the sizes of the recipe. Operations and time do not depend on the content."""
    episode, generator = recipe.episode, torch.Generator().manual_seed(0)
    labels = torch.arange(episode.n_way)
    sizes = (episode.k_shot, episode.n_query if n_query is None else n_query)
    support, query = (
        torch.randint(
            0,
            256,
            (count * episode.n_way, recipe.data.num_frames, 3, *image_size),
            dtype=torch.uint8,
            generator=generator,
        )
        for count in sizes
    )
    names = tuple(map(str, range(episode.n_way)))
    support_labels, query_labels = (labels.repeat_interleave(count) for count in sizes)
    return Episode(support, support_labels, query, query_labels, names, classes=torch.zeros_like(labels))


def training_task(recognizer: FewShotRecognizer, task: Episode) -> None:
    """Run forward and backward of one training task, without an optimizer. Gradients are set to None at the end."""
    output: EpisodeOutput = recognizer(task)
    loss = functional.cross_entropy(output.logits, task.query_labels.to(output.logits.device))
    total = loss + sum(value for name, value in output.losses.items() if name != "cross_entropy")
    if total.requires_grad:
        total.backward()
    recognizer.zero_grad(set_to_none=True)


def operations(recognizer: FewShotRecognizer, recipe: Recipe) -> dict[str, float | None]:
    """Return billions of floating point operations, by torch's counter. A multiply-add counts as two.

    ``video``: forward of one video through the encoder. ``task``: forward and backward of one training task of the
    recipe, or None if the recipe trains nothing. Counted in training mode, where no fused kernel hides an operation.
    """
    was_training, device = recognizer.training, next(recognizer.parameters()).device
    task = noise_task(recipe, recognizer.encoder.image_size).to(device)
    recognizer.train()
    freeze_batch_norm(recognizer)
    try:
        with torch.no_grad():
            video = flops_of(lambda: recognizer.encoder.encode(task.support[:1]))
        trains = bool(recipe.train.steps)
        training = flops_of(lambda: training_task(recognizer, task)) if trains else None
    finally:
        recognizer.train(was_training)
    return {"video": _giga(video), "task": None if training is None else _giga(training)}


def flops_of(work: Callable[[], object]) -> int:
    """Return the floating point operations of a call. Attention is computed as products, which the counter knows."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def encoding_throughput(recognizer: FewShotRecognizer, recipe: Recipe) -> dict[str, object]:
    """Return the videos that an evaluation encodes per second, without reading them: median and quartiles."""
    device = next(recognizer.parameters()).device
    count = videos_at_a_time(device)
    task = noise_task(recipe, recognizer.encoder.image_size).to(device)
    videos = torch.cat([task.support, task.query])
    videos = videos.repeat(-(-count // len(videos)), *[1] * (videos.dim() - 1))[:count]
    rates = []
    recognizer.eval()
    with torch.no_grad():
        for number in range(ENCODINGS + 1):
            start = time.perf_counter()
            precompute_states(recognizer, videos)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                rates.append(count / (time.perf_counter() - start))
    return spread(rates, digits=2)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, object]:
    """Return median, quartiles and number of values. Without values, None."""
    if not values:
        return {"median": None, "quartiles": None, "count": 0}
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    quartiles = [round(low, digits), round(high, digits)]
    return {"median": round(statistics.median(values), digits), "quartiles": quartiles, "count": len(values)}


def _giga(count: int) -> float:
    return round(count / 1e9, 6)
