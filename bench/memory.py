"""Memory and time of a training step on a random ViT-B/16: plain, with checkpointed blocks, and in two passes.

    python -m dmgal.bench.memory                                            # on two cores: minutes
    python -m dmgal.bench.memory --image-size 64 --frames 2 --rounds 1      # a quick look
    python -m dmgal.bench.memory --frames 8                                 # as in the field: needs 25 GB of RAM
    python -m dmgal.bench.memory --device cuda --frames 8 --queries 1 5 --card-gb 24  # a GPU, as if it had 24 GB

A step is forward and backward of one 5-way task of noise. Each case runs in a fresh process with the same weights and
task, once a round, the ways of a task in turn: a small step first, for what libraries allocate at their first call;
then a step with its time (on a CPU of the process, over all threads) and its peak memory above what was held before (on
a CPU of the process, on a GPU what torch allocated). In the first round its gradients are compared to those of plain
training, and on a CPU one more step counts the tensors exactly. Medians over rounds. Two passes with a share have that
share of plain training's counted peak as their budget, as ``--train.memory-budget`` gives it.

transformers' CLIP is measured: on a CPU open_clip's attention multiplies frozen weights one token at a time, for small
chunks at half the speed of large batches, and that would be measured instead.

The table of tasks that fit on a 24 GB GPU is estimated from one video and one comparison, counted over tensors on a
CPU. It adds weights, gradients and AdamW's two moments to sums of

    plain           videos * whole graph of one                               + comparison
    checkpointed    videos * graph of one with checkpointed blocks            + comparison
    two passes      videos * what is kept + chunk * whole graph of one        + comparison

Kernels of a GPU keep somewhat other things, so a table measured there (``--device cuda --card-gb 24``) comes before
this one. Writes ``bench/results/memory.json``.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmgal.backbones import FrameEncoder, VideoState, use_memory_efficient_gelu
from dmgal.bench.measuring import CPU, Work, conditions, cpu_seconds, peak_extra_bytes, seconds, write_report
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.two_pass.memory import LiveBytes, memory_of
from dmgal.episodes.two_pass.recompute import keeping_products
from dmgal.episodes.two_pass.two_pass import TwoPass
from dmgal.errors import DmgalError

WAYS = 5
WANTED = {"memory_share_at_most": 0.2, "time_ratio_at_most": 1.25, "gradient_difference_at_most": 1e-5}
SMALL_VIDEOS = 3
CARD, CONTEXT = 24e9, 0.8e9
"""Bytes of the GPU in the table, and the part of them that CUDA and its libraries use (an assumption)."""
TABLE_IMAGE_SIZE, TABLE_FRAMES = 224, 8
Trained = Literal["adapters", "everything"]
Way = Literal["plain", "checkpointed", "two passes"]


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        shots, queries: per class.
        chunk: videos encoded at once in two passes.
        shares: of plain training's memory, the budgets of two passes; 0: no budget.
        trained: DMGAL-Adapters on a frozen backbone, or the bare backbone as a whole.
        image_size: of the images; a multiple of 16.
        frames: of a video.
        rounds: fresh processes of each case; the median counts.
        precision: bf16 is autocast.
        card_gb: on a GPU, all that a process may have.
        table: also the estimated table, at 224 pixels and 8 frames whatever the rest is; a CPU takes a minute or two.
    """

    shots: tuple[int, ...] = (5,)
    queries: tuple[int, ...] = (1,)
    chunk: int = 1
    shares: tuple[float, ...] = (0.0, 0.17)
    trained: tuple[Trained, ...] = ("adapters",)
    image_size: int = 224
    frames: int = 2
    rounds: int = 3
    threads: int = 2
    device: str = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    card_gb: float | None = None
    table: bool = True
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "memory.json"


@dataclass(frozen=True)
class Case:
    """Training step to measure."""

    trained: Trained
    shots: int
    queries: int
    way: Way
    share: float | None = None

    @property
    def videos(self) -> int:
        """Number of videos of the task."""
        return WAYS * (self.shots + self.queries)


def recognizer(trained: Trained, image_size: int, frames: int, checkpointed: bool = False) -> FewShotRecognizer:
    """Return Bi-MHM on ViT-B/16, with noise added to all trained weights."""
    import peft
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from dmgal.adapters import DmgalConfig

    config = CLIPVisionConfig(image_size=image_size, patch_size=16)  # the other sizes are those of a ViT-B
    model: nn.Module = CLIPVisionModel(config)
    model.requires_grad_(trained == "everything")
    if trained == "adapters":
        model = peft.get_peft_model(model, DmgalConfig(num_frames=frames))
    encoder = FrameEncoder(use_memory_efficient_gelu(model), checkpoint_blocks=checkpointed)
    whole = FewShotRecognizer(encoder, BiMHM(center="video", logit_scale=10.0)).train()
    for name, parameter in whole.named_parameters():
        if "dmgal_" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return whole


def task(shots: int, queries: int, image_size: int, frames: int) -> Episode:
    """Return a task of noise. The cost does not depend on the content."""
    labels = [torch.arange(WAYS).repeat_interleave(count) for count in (shots, queries)]
    support, query = (
        torch.randint(0, 256, (len(part), frames, 3, image_size, image_size), dtype=torch.uint8) for part in labels
    )
    return Episode(support, labels[0], query, labels[1], tuple("abcde"))


def loss(output: EpisodeOutput, episode: Episode) -> Tensor:
    """Return the cross-entropy of the queries."""
    return F.cross_entropy(output.logits, episode.query_labels)


def tasks(options: Options) -> Iterator[list[Case]]:
    """Yield the cases of each task. Plain training comes first, as the reference for gradients and memory."""
    for one in itertools.product(options.trained, options.shots, options.queries):
        in_two = [Case(*one, "two passes", share) for share in options.shares]
        yield [Case(*one, "plain"), Case(*one, "checkpointed"), *in_two]


def step_of(
    case: Case, options: Options, model: FewShotRecognizer, episode: Episode, budget: float | None
) -> Callable[[Episode], object]:
    """Return forward and backward pass of a task, after choosing the two-pass plan as a training does once."""

    def region() -> AbstractContextManager[object]:
        bf16 = options.precision == "bf16"
        return torch.autocast(options.device.partition(":")[0], torch.bfloat16) if bf16 else nullcontext()

    if case.way == "two passes":
        two_pass = TwoPass(model, options.chunk, memory_budget=budget, autocast=region, notify=print)
        two_pass.plan(episode)
        return lambda episode: two_pass.backward([episode], loss)

    def step(episode: Episode) -> None:
        with region():
            output = model(episode)
        loss(output, episode).backward()

    return step


def run_case(
    case: Case, options: Options, folder: Path, budget: float | None = None, first: bool = True
) -> dict[str, Any]:
    """Measure memory and time in this process, and write the gradients to a file in the first round."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if options.card_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.card_gb * 1e9 / total, device)
    model = recognizer(case.trained, options.image_size, options.frames, case.way == "checkpointed").to(device)
    episode = task(case.shots, case.queries, options.image_size, options.frames).to(device)
    try:
        step = step_of(case, options, model, episode, budget)
        small_step(step, episode)
        model.zero_grad(set_to_none=True)
        memory, time_taken = _cost(lambda: step(episode), device)
        if first:
            save_file({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}, _file(folder, case))
    except (torch.OutOfMemoryError, DmgalError):
        return {"out_of_memory": True}
    result = {"peak_extra_mb": memory, "seconds": round(time_taken, 3)}
    if first and device.type == "cpu":
        model.zero_grad(set_to_none=True)
        with LiveBytes() as live:
            step(episode)
        result["peak_extra_tensor_mb"] = round(live.peak / 1e6, 1)
    return result


def small_step(step: Callable[[Episode], object], episode: Episode) -> None:
    """Run a warm-up step with one video per class. Its chunk is as large as the real one only if that is one video."""
    support = torch.stack([episode.support[(episode.support_labels == c).nonzero()[0, 0]] for c in range(2)])
    labels = torch.arange(2, device=support.device)
    step(Episode(support, labels, episode.query[:1], labels[:1], ("a", "b")))


def _cost(work: Work, device: torch.device) -> tuple[float | None, float]:
    """Return the peak memory above the current one in MB (None if the system does not report it), and seconds."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        time_taken = seconds(work, device)
        return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1), time_taken
    times: list[float] = []
    extra = peak_extra_bytes(lambda: times.append(cpu_seconds(work)))
    return None if extra is None else round(extra / 1e6, 1), times[0]


def _file(folder: Path, case: Case) -> Path:
    words = (case.trained, case.shots, case.queries, case.way.replace(" ", "_"), case.share)
    return folder / f"{'-'.join(map(str, words))}.safetensors"


def gradient_difference(one: Path, other: Path) -> float:
    """Return the largest difference of two sets of gradients, relative to the largest gradient of the second."""
    found, expected = load_file(one), load_file(other)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    return float(f"{max((found[n] - g).abs().max().item() for n, g in expected.items()) / largest:.1e}")


def measured(options: Options) -> list[dict[str, Any]]:
    """Measure all cases, each next to the plain one of its task."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        for ways in tasks(options):
            found: dict[Case, list[dict[str, object]]] = {case: [] for case in ways}
            for number in range(options.rounds):
                for case in ways if number % 2 == 0 else reversed(ways):
                    budget = _budget(case, found[ways[0]], options)
                    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
                        job = executor.submit(run_case, case, options, Path(name), budget, number == 0)
                        found[case].append(job.result())
                    print(case, found[case][-1], flush=True)
            plain = _medians(found[ways[0]])
            for case in ways:
                result = _medians(found[case])
                row = {**asdict(case), "videos": case.videos, **result}
                if case.way != "plain" and "out_of_memory" not in plain and "out_of_memory" not in result:
                    row |= _beside(result, plain)
                    files = (_file(Path(name), one) for one in (case, ways[0]))
                    row["gradient_difference"] = gradient_difference(*files)
                rows.append(row)
    return rows


def _budget(case: Case, plain: list[dict[str, Any]], options: Options) -> float | None:
    """Return the bytes for two passes: a fraction of the memory (or counted tensors) of plain training."""
    if not case.share:
        return None
    peaks = [row.get("peak_extra_tensor_mb", row.get("peak_extra_mb")) for row in plain[:1]]
    if peaks and peaks[0]:
        return 1e6 * case.share * peaks[0]
    return 1e9 * case.share * options.card_gb if options.card_gb else None


def _medians(results: list[dict[str, Any]]) -> dict[str, object]:
    """Return medians over rounds, with the seconds of every round to show their spread."""
    if any("out_of_memory" in result for result in results):
        return {"out_of_memory": True}
    medians: dict[str, object] = {}
    for key in results[0]:
        values = [result[key] for result in results if result.get(key) is not None]
        medians[key] = round(statistics.median(values), 3) if values else None
    return medians | {"all_seconds": [result["seconds"] for result in results]}


def _beside(result: dict[str, object], plain: dict[str, Any]) -> dict[str, float]:
    names = {"peak_extra_mb": "memory_share", "peak_extra_tensor_mb": "tensor_memory_share", "seconds": "time_ratio"}
    return {
        share: round(result[key] / plain[key], 3) for key, share in names.items() if result.get(key) and plain.get(key)
    }


def estimated_table() -> list[dict[str, object]]:
    """Return one row for each combination of trained part, precision and task, at 224 pixels and 8 frames."""
    rows = []
    for trained in get_args(Trained):
        plain, checkpointed = (recognizer(trained, TABLE_IMAGE_SIZE, TABLE_FRAMES, blocks) for blocks in (False, True))
        for precision in ("float32", "bf16"):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                videos = task(1, 1, TABLE_IMAGE_SIZE, TABLE_FRAMES).support[:1]
                sizes = {
                    "graph": memory_of(partial(_there_and_back, plain, videos), CPU).peak,
                    "checkpointed": memory_of(partial(_there_and_back, checkpointed, videos), CPU).peak,
                    "kept": memory_of(partial(_kept, plain, videos), CPU).held,
                }
                state = plain.encode(videos)
            for shots, queries in itertools.product((1, 5), (1, 5)):
                comparison = _comparison(plain, state, task(shots, queries, 16, 1), precision)
                what = {"trained": trained, "precision": precision, "shots": shots, "queries": queries}
                rows.append(what | _row(sizes, comparison, _fixed(plain), WAYS * (shots + queries)))
    return rows


def _row(sizes: dict[str, int], comparison: int, fixed: int, videos: int) -> dict[str, object]:
    base = fixed + comparison + CONTEXT
    one_pass = {"plain": base + videos * sizes["graph"], "checkpointed": base + videos * sizes["checkpointed"]}
    two_passes = base + videos * sizes["kept"]
    return {
        "videos": videos,
        "gb": {
            **{name: round(total / 1e9, 1) for name, total in one_pass.items()},
            "two_passes_chunk_1": round((two_passes + sizes["graph"]) / 1e9, 1),
            "two_passes_chunk_5": round((two_passes + min(5, videos) * sizes["graph"]) / 1e9, 1),
        },
        "fits_in_24_gb": {name: total <= CARD for name, total in one_pass.items()},
        "largest_chunk_in_24_gb": max(0, int(min(videos, (CARD - two_passes) // sizes["graph"]))),
        "mb": {
            "of_a_video": {name: round(size / 1e6, 1) for name, size in sizes.items()},
            "comparison": round(comparison / 1e6, 1),
            "weights_gradients_moments": round(fixed / 1e6, 1),
        },
    }


def _there_and_back(model: FewShotRecognizer, videos: Tensor) -> None:
    state = [tensor for tensor in model.encode(videos).values() if tensor.requires_grad]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.autograd.grad(state, trained, [torch.ones_like(tensor) for tensor in state], allow_unused=True)


def _kept(model: FewShotRecognizer, videos: Tensor) -> VideoState:
    state: VideoState = checkpoint(model.encode, videos, use_reentrant=False, context_fn=keeping_products)
    return state


def _comparison(model: FewShotRecognizer, state: VideoState, episode: Episode, precision: str) -> int:
    """Return the bytes of a comparison of identical videos. The episode's own videos are not used."""

    def repeated(count: int) -> VideoState:
        copies = {n: t.detach().expand(count, *t.shape[1:]).clone() for n, t in state.items()}
        return VideoState({n: copy.requires_grad_(state[n].requires_grad) for n, copy in copies.items()})

    parts = [repeated(count) for count in (episode.num_support, episode.num_query)]

    def there_and_back() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model.compare(parts[0], episode.support_labels, parts[1])
        leaves = [tensor for part in parts for tensor in part.values() if tensor.requires_grad]
        torch.autograd.grad(loss(output, episode), leaves, allow_unused=True)

    states = sum(tensor.nbytes for part in parts for tensor in part.values())
    return memory_of(there_and_back, CPU).peak + states


def _fixed(model: FewShotRecognizer) -> int:
    """Return the bytes of weights, gradients and AdamW's two moments."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + 3 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "what": "memory above what is held before, and time, of one training step on ViT-B/16 with random weights",
        **conditions(options),
    }
    if "cuda" in options.device:
        report["hardware"]["gpu"] = torch.cuda.get_device_name(options.device)
    report |= {"wanted_at_5_shots": WANTED, "measured": measured(options)}
    if options.table:
        report["reasoned_for_24_gb"] = estimated_table()
    write_report(report, options.out, show=False)
    print(json.dumps(report.get("reasoned_for_24_gb"), indent=2))


if __name__ == "__main__":
    main()
