"""Our motion attention and M2ACL contrast against the authors' versions: paired times, and memory per process.

    python -m dmgal.bench.kernels

Inference: no gradients, one thread by default. The authors' forms are written from their formulas: each direction's map
times the values, the support repeated for every query, all frames at once; the contrast in loops over classes, queries,
other classes and tuples. The floor is the time of only the matrix products that our version needs, in chunks
that fit the cache. Extra memory is the peak above the inputs, measured in one process per version. Writes
``bench/results/kernels.json``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from torch import Tensor

from dmgal.adapters.dmgal import CmgaAdapter
from dmgal.adapters.mga import CrossMotionGuidedAttention
from dmgal.adapters.motion import MAP_ENTRIES_IN_CACHE, Motion, motion_attention
from dmgal.backbones.state import VideoState
from dmgal.bench.measuring import (
    Work,
    conditions,
    median_with_interval,
    paired_seconds,
    peak_extra_bytes,
    write_report,
)
from dmgal.episodes.heads.m2acl import tuple_contrast, tuple_distances

QUERIES, SUPPORTS, FRAMES = 5, 25, 8
WANTED = {
    "c_mga_float32": {"speedup": 1.8, "memory_share": 0.2},
    "c_mga_bfloat16": {"speedup": 2.5, "memory_share": 0.2},
    "s_mga_float32": {"speedup": 1.5},
    "s_mga_bfloat16": {"speedup": 1.5},
    "m2acl_pairs": {"speedup": 20.0},
    "m2acl_triples": {"speedup": 20.0},
}


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        rounds: of each kernel.
        threads: of torch; with more than one, CPU time counts the waiting of each.
        only: kernels whose names begin so; all if empty.
        memory: measure extra memory too, in two processes per kernel.
        seed: of inputs and orders.
        out: where the result goes.
    """

    rounds: int = 21
    threads: int = 1
    only: tuple[str, ...] = ()
    memory: bool = True
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "kernels.json"


class Forms(NamedTuple):
    """Two versions of a kernel, and its matrix products alone (None if products do not dominate the cost)."""

    authors: Work
    ours: Work
    products: Work | None


class Sizes(NamedTuple):
    """Number of patches per frame, and of channels of motion and values."""

    patches: int
    motion: int
    values: int


ADAPTER, FULL_WIDTH = Sizes(196, 24, 192), Sizes(49, 256, 2048)


def authors_attention(query: Motion, keys: Motion, values: Tensor) -> Tensor:
    """Compute both directions separately up to the values: ``(B,n,d)``, ``(B,m,d)`` and ``(B,m,a)`` to ``(B,n,a)``."""
    results = []
    for ours, theirs in zip(query, keys, strict=True):
        scores = torch.bmm(ours, theirs.transpose(1, 2)) / ours.shape[-1] ** 0.5
        results.append(torch.bmm(torch.softmax(scores, dim=2), values))
    return 0.5 * results[0] + 0.5 * results[1]


def authors_cross(query: VideoState, support: VideoState) -> Tensor:
    """Return ``(Q,T,P,a)`` with all frames of all queries in one batch and the support repeated for each query."""
    num_query, frames = query["forward"].shape[:2]
    repeated = {
        name: tokens.transpose(0, 1).flatten(1, 2).repeat(num_query, 1, 1)  # (Q*T,S*P,.)
        for name, tokens in support.items()
    }
    keys = Motion(repeated["forward"], repeated["backward"])
    queries = Motion(query["forward"].flatten(0, 1), query["backward"].flatten(0, 1))
    return authors_attention(queries, keys, repeated["values"]).unflatten(0, (num_query, frames))


def bare_products(query: Motion, keys: Motion, values: Tensor) -> None:
    """Compute both directions' scores of ``(B,n,d)`` and ``(B,m,d)``, and a product with ``(B,m,a)``, in chunks."""
    rows = max(1, MAP_ENTRIES_IN_CACHE // values.shape[1])
    frames = max(1, rows // query.forward.shape[1])
    for first in range(0, len(values), frames):
        here = slice(first, first + frames)
        for row in range(0, query.forward.shape[1], rows):
            maps = [a[here, row : row + rows] @ b[here].mT for a, b in zip(query, keys, strict=True)]
            _ = maps[0] @ values[here]


def cross_products(query: VideoState, support: VideoState) -> Work:
    """Return the products of all frames, with tokens concatenated beforehand."""
    queries, keys = (
        Motion(*(state[name].transpose(0, 1).flatten(1, 2) for name in Motion._fields)) for state in (query, support)
    )
    return partial(bare_products, queries, keys, support["values"].transpose(0, 1).flatten(1, 2))


def tokens(videos: int, sizes: Sizes, dtype: torch.dtype) -> VideoState:
    """Return random motion and values of some videos."""
    shape = (videos, FRAMES, sizes.patches)
    spread = sizes.motion**-0.25  # scores of about 1, so that no softmax has a single winner
    state = VideoState({name: spread * torch.randn(*shape, sizes.motion) for name in Motion._fields})
    return VideoState(state, values=torch.randn(*shape, sizes.values)).to(dtype)


def c_mga(dtype: torch.dtype) -> Forms:
    """Return the versions of the Cmga-Adapter's cross attention."""
    query, support = tokens(QUERIES, ADAPTER, dtype), tokens(SUPPORTS, ADAPTER, dtype)
    return Forms(
        partial(authors_cross, query, support),
        partial(CmgaAdapter._cross, support, query, 1),
        cross_products(query, support),
    )


def s_mga(dtype: torch.dtype, sizes: Sizes = ADAPTER) -> Forms:
    """Return the versions of attention within each frame of a task's videos, as in the Smga-Adapter and TDSAM."""
    state = tokens(QUERIES + SUPPORTS, sizes, dtype)
    motion, values = Motion(state["forward"].flatten(0, 1), state["backward"].flatten(0, 1)), state["values"]
    values = values.flatten(0, 1)  # (V*T,P,a)

    inputs = motion, motion, values
    return Forms(*(partial(form, *inputs) for form in (authors_attention, motion_attention, bare_products)))


def c_mga_full_width(pooled: bool) -> Forms:
    """Return the versions of DMGAL-FT's C-MGA on ResNet-50 maps, up to features or to their mean over patches."""
    module = CrossMotionGuidedAttention(FULL_WIDTH.values).eval()
    module.gamma_cross.data.fill_(1)
    side = int(FULL_WIDTH.patches**0.5)
    states = [
        module.prepare(torch.randn(videos, FRAMES, FULL_WIDTH.values, side, side)) for videos in (SUPPORTS, QUERIES)
    ]
    support, query = (
        VideoState(forward=state["motion"][:, 0], backward=state["motion"][:, 1], values=state["values"])
        for state in states
    )
    residual = states[1]["residual"]

    def authors() -> Tensor:
        patches = authors_cross(query, support).transpose(2, 3)  # (Q,T,C,P)
        features = residual + module.gamma_cross * patches.reshape(residual.shape)
        return features.mean(dim=(-2, -1)) if pooled else features

    if pooled:
        pooled_states = [module.pool(state) for state in states]
        return Forms(authors, lambda: module.relate_pooled(*pooled_states)[1], None)
    return Forms(authors, lambda: module.relate(*states)[1], cross_products(query, support))


def contrast_in_loops(distances: Tensor, support_distances: Tensor, labels: Tensor) -> Tensor:
    """Compute M2ACL's contrast in loops over classes, other classes, queries and tuples. See `tuple_contrast`."""
    num_query, num_tuples = distances.shape[:2]
    places = [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]
    result = torch.zeros(num_query, len(places))
    for c, own in enumerate(places):
        unrelated = torch.zeros(distances.shape[2:], dtype=torch.bool)
        for k, other in enumerate(places):
            if k == c:
                continue
            counts = torch.zeros(len(other) * num_tuples)
            for q in range(num_query):
                for i in range(num_tuples):
                    to_class = distances[q, i, own].flatten()
                    threshold = to_class.view(num_tuples, len(own)).amax(dim=0).mean()
                    farthest = support_distances[own].flatten(0, 1)[to_class.argmax()]
                    counts += farthest[other].flatten() > threshold
            unrelated[other] = (counts < counts[counts > 0].mean()).view(len(other), num_tuples)
        for q in range(num_query):
            largest = distances[q][:, own].flatten(1).amax(dim=1).mean()
            to_unrelated = distances[q][:, unrelated].mean() / (len(places) - 1)
            result[q, c] = largest / (largest + to_unrelated)
    return result


def m2acl(cardinality: int, shots: int) -> Forms:
    """Return the versions of the contrast of a 5-way task with 2 queries per class."""
    num_tuples = len(torch.combinations(torch.arange(FRAMES), cardinality))
    query, support = (torch.rand(videos, num_tuples, 64) for videos in (10, 5 * shots))
    labels = torch.arange(5).repeat(shots)
    inputs = tuple_distances(query, support), tuple_distances(support, support), labels
    return Forms(partial(contrast_in_loops, *inputs), partial(tuple_contrast, *inputs), None)


KERNELS: dict[str, Callable[[], Forms]] = {
    "c_mga_float32": partial(c_mga, torch.float32),
    "c_mga_bfloat16": partial(c_mga, torch.bfloat16),
    "s_mga_float32": partial(s_mga, torch.float32),
    "s_mga_bfloat16": partial(s_mga, torch.bfloat16),
    "tdsam_full_width_float32": partial(s_mga, torch.float32, Sizes(49, 1024, 2048)),
    "c_mga_full_width_float32": partial(c_mga_full_width, False),
    "c_mga_full_width_pooled_float32": partial(c_mga_full_width, True),
    "m2acl_pairs": partial(m2acl, 2, 5),
    "m2acl_triples": partial(m2acl, 3, 1),
}


@torch.no_grad()
def measure(name: str, options: Options) -> dict[str, object]:
    """Check that both versions of a kernel agree, and measure the gain of ours in time and memory."""
    torch.manual_seed(options.seed)
    forms = KERNELS[name]()
    cases = {"ours": forms.ours} | ({"products": forms.products} if forms.products else {})
    pairs = paired_seconds(forms.authors, cases, options.rounds, options.seed)
    result: dict[str, object] = {
        "largest_difference": largest_difference(forms),
        "speedup": median_with_interval([authors / ours for ours, authors in pairs["ours"]]),
        "authors_ms": median_with_interval([1000 * authors for _, authors in pairs["ours"]]),
    }
    result |= {f"{form}_ms": median_with_interval([1000 * one for one, _ in times]) for form, times in pairs.items()}
    if options.memory:
        memory = {form: extra_memory_mb(name, form, options.seed) for form in ("authors", "ours")}
        result |= {"extra_memory_mb": memory, "wanted": WANTED.get(name)}
        ours, authors = memory["ours"], memory["authors"]
        if ours and authors:
            result["memory_share"] = round(ours / authors, 3)
    return result


def largest_difference(forms: Forms) -> float:
    """Return the largest difference of the two results, relative to the largest value of the authors'."""
    theirs, ours = (torch.as_tensor(form()).float() for form in (forms.authors, forms.ours))
    return float(f"{(theirs - ours).abs().max() / theirs.abs().max():.1e}")


def extra_memory_mb(name: str, form: str, seed: int) -> float | None:
    """Return the peak memory of a version above its inputs, or None if the system does not report it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(_peak_above_inputs_mb, name, form, seed).result()


@torch.no_grad()
def _peak_above_inputs_mb(name: str, form: str, seed: int) -> float | None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    work = getattr(KERNELS[name](), form)
    small = torch.ones(1, 8, 8)
    torch.softmax(torch.bmm(small, small), dim=2)  # warm-up: libraries allocate at their first call
    extra = peak_extra_bytes(work)
    return None if extra is None else round(extra / 2**20, 1)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(options.threads)
    names = [name for name in KERNELS if name.startswith(options.only or ("",))]
    report: dict[str, object] = {
        "what": "CPU time and extra memory of kernels, ours against the authors' forms; paired medians, 95 % intervals",
        "sizes": f"{QUERIES} queries, {SUPPORTS} supports, {FRAMES} frames; adapter {ADAPTER}, full width {FULL_WIDTH}",
        **conditions(options),
        "kernels": {name: measure(name, options) for name in names},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
