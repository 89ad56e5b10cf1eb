"""Estimate of which training tasks fit on a 24 GB GPU, from the memory of one video and one comparison.

Counted over tensors on a CPU: ViT-B/16, 8 frames of 224 pixels, DMGAL-Adapters or everything trained. Sums of

    plain           videos * whole graph of one                               + comparison
    checkpointed    videos * graph of one with checkpointed blocks            + comparison
    two passes      videos * what is kept + chunk * whole graph of one        + comparison

beside weights, gradients and AdamW's two moments. Kernels of a GPU keep somewhat other things, so a table measured
there (``bench/memory.py --device cuda --card-gb 24``) comes before this one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmgal.backbones import VideoState
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.episodes.two_pass.memory import memory_of
from dmgal.episodes.two_pass.recompute import keeping_products

CARD, CONTEXT = 24e9, 0.8e9
"""Bytes of the GPU, and the part of them that CUDA and its libraries use (an assumption)."""
IMAGE_SIZE, FRAMES, WAYS = 224, 8, 5
CPU = torch.device("cpu")

Loss = Callable[[EpisodeOutput, Episode], Tensor]


def reasoned_table(
    recognizer: Callable[..., FewShotRecognizer], task: Callable[..., Episode], loss: Loss
) -> list[dict[str, Any]]:
    """Return one row for each combination of trained part, precision and task."""
    rows = []
    for trained in ("adapters", "everything"):
        plain, checkpointed = (recognizer(trained, IMAGE_SIZE, FRAMES, blocks) for blocks in (False, True))
        for precision in ("float32", "bf16"):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                videos = task(1, 1, IMAGE_SIZE, FRAMES).support[:1]
                sizes = {
                    "graph": memory_of(partial(_there_and_back, plain, plain.encode, videos), CPU).peak,
                    "checkpointed": memory_of(
                        partial(_there_and_back, checkpointed, checkpointed.encode, videos), CPU
                    ).peak,
                    "kept": memory_of(partial(_kept, plain, videos), CPU).held,
                }
                state = plain.encode(videos)
            for shots, queries in ((1, 1), (1, 5), (5, 1), (5, 5)):
                comparison = _comparison(plain, state, task(shots, queries, 16, 1), loss, precision)
                what = {"trained": trained, "precision": precision, "shots": shots, "queries": queries}
                rows.append(what | _row(sizes, comparison, _fixed(plain), WAYS * (shots + queries)))
    return rows


def _row(sizes: dict[str, int], comparison: int, fixed: int, videos: int) -> dict[str, Any]:
    base = fixed + comparison + CONTEXT
    totals = {name: base + videos * sizes[name] for name in ("graph", "checkpointed")}
    two_passes = base + videos * sizes["kept"]
    largest = int(min(videos, (CARD - two_passes) // sizes["graph"]))
    return {
        "videos": videos,
        "gb": {
            "plain": round(totals["graph"] / 1e9, 1),
            "checkpointed": round(totals["checkpointed"] / 1e9, 1),
            "two_passes_chunk_1": round((two_passes + sizes["graph"]) / 1e9, 1),
            "two_passes_chunk_5": round((two_passes + min(5, videos) * sizes["graph"]) / 1e9, 1),
        },
        "fits_in_24_gb": {
            name: total <= CARD
            for name, total in (("plain", totals["graph"]), ("checkpointed", totals["checkpointed"]))
        },
        "largest_chunk_in_24_gb": max(0, largest),
        "mb": {
            "of_a_video": {name: round(size / 1e6, 1) for name, size in sizes.items()},
            "comparison": round(comparison / 1e6, 1),
            "weights_gradients_moments": round(fixed / 1e6, 1),
        },
    }


def _there_and_back(model: FewShotRecognizer, encode: Callable[[Tensor], VideoState], videos: Tensor) -> None:
    state = [tensor for tensor in encode(videos).values() if tensor.requires_grad]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.grad(state, trained, [torch.ones_like(tensor) for tensor in state], allow_unused=True)


def _kept(model: FewShotRecognizer, videos: Tensor) -> VideoState:
    return checkpoint(model.encode, videos, use_reentrant=False, context_fn=keeping_products)  # type: ignore[no-any-return]


def _comparison(model: FewShotRecognizer, state: VideoState, episode: Episode, loss: Loss, precision: str) -> int:
    """Return the bytes of a comparison of identical videos. The episode's own videos are not used."""
    counts = episode.num_support, episode.num_query
    parts = [
        VideoState(
            {
                n: t.detach().expand(count, *t.shape[1:]).clone().requires_grad_(t.requires_grad)
                for n, t in state.items()
            }
        )
        for count in counts
    ]

    def there_and_back() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model.compare(parts[0], episode.support_labels, parts[1])
        leaves = [tensor for part in parts for tensor in part.values() if tensor.requires_grad]
        torch.autograd.grad(loss(output, episode), leaves, allow_unused=True)

    states = sum(tensor.nbytes for part in parts for tensor in part.values())
    return memory_of(there_and_back, CPU).peak + states


def _fixed(model: FewShotRecognizer) -> int:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + 3 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
