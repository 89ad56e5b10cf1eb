"""Memory and time of a training step: plain, with checkpointed blocks, and in two passes; ViT-B/16 with random weights.

    python -m dmgal.bench.memory                                          # ViT-B/16 as it is: needs 25 GB of RAM
    python -m dmgal.bench.memory --image-size 112 --frames 2 --steps 1    # a quick look
    python -m dmgal.bench.memory --device cuda --queries 1 5 --card-gb 24  # on a GPU, which then counts as one of 24 GB

A step is forward and backward of one 5-way task of noise. Each case runs in a fresh process with the same weights and
task: a small step first, for what libraries allocate at their first call; then a step whose gradients are compared to
those of plain training, with its peak memory above what was held before (on a CPU of the process, and counted exactly
over tensors in a step of its own; on a GPU what torch allocated); then steps on the clock. The table for a card of 24
GB is reasoned, from what one video and one comparison take. Writes ``bench/results/memory.json``.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmgal.backbones import FrameEncoder
from dmgal.bench.measuring import hardware
from dmgal.bench.memory_table import reasoned_table
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.live_bytes import LiveBytes
from dmgal.episodes.two_pass import TwoPass

WAYS = 5
WANTED = {"memory_share_at_most": 0.2, "time_ratio_at_most": 1.25, "gradient_difference_at_most": 1e-5}
Trained = Literal["adapters", "everything"]


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        shots, queries: per class.
        chunks: videos in a chunk; those as large as the task are left out.
        trained: DMGAL-Adapters on a frozen backbone, or the bare backbone as a whole.
        image_size: of the images; a multiple of 16.
        frames: of a video.
        steps: on the clock; the median counts.
        precision: bf16 is autocast.
        card_gb: on a GPU, all that a process may have.
        table: also the reasoned table, at 224 pixels and 8 frames whatever the rest is; a CPU takes a minute or two.
    """

    shots: tuple[int, ...] = (1, 5)
    queries: tuple[int, ...] = (1,)
    chunks: tuple[int, ...] = (1, 2, 5)
    trained: tuple[Trained, ...] = ("adapters", "everything")
    image_size: int = 224
    frames: int = 8
    steps: int = 3
    threads: int = 1
    device: str = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    card_gb: float | None = None
    table: bool = True
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "memory.json"


@dataclass(frozen=True)
class Case:
    """One way to take a step."""

    trained: Trained
    shots: int
    queries: int
    way: Literal["plain", "checkpointed", "two passes", "two passes, nothing kept"]
    chunk: int | None = None

    @property
    def videos(self) -> int:
        return WAYS * (self.shots + self.queries)


def recognizer(trained: Trained, image_size: int, frames: int, checkpointed: bool = False) -> FewShotRecognizer:
    """Bi-MHM on ViT-B/16, every trained weight moved from where it starts."""
    import open_clip
    import peft

    from dmgal.adapters import DmgalConfig

    model: Any = open_clip.create_model("ViT-B-16", pretrained=None, force_image_size=image_size).visual
    if trained == "adapters":
        model = peft.get_peft_model(model, DmgalConfig(num_frames=frames))
    encoder = FrameEncoder(model, checkpoint_blocks=checkpointed)
    whole = FewShotRecognizer(encoder, BiMHM(center="video", logit_scale=10.0)).train()
    for name, parameter in whole.named_parameters():
        if "dmgal_" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return whole


def task(shots: int, queries: int, image_size: int, frames: int) -> Episode:
    """Noise; the cost does not depend on what is shown."""
    labels = [torch.arange(WAYS).repeat_interleave(count) for count in (shots, queries)]
    support, query = (
        torch.randint(0, 256, (len(part), frames, 3, image_size, image_size), dtype=torch.uint8) for part in labels
    )
    return Episode(support, labels[0], query, labels[1], tuple("abcde"))


def loss(output: EpisodeOutput, episode: Episode) -> Tensor:
    """Cross-entropy of the queries."""
    return F.cross_entropy(output.logits, episode.query_labels)


def cases(options: Options) -> Iterator[Case]:
    """Plain first, for the gradients that the others are compared to."""
    for trained in options.trained:
        for shots in options.shots:
            for queries in options.queries:
                one = (trained, shots, queries)
                yield Case(*one, "plain")
                yield Case(*one, "checkpointed")
                for chunk in options.chunks:
                    if chunk < WAYS * (shots + queries):
                        yield Case(*one, "two passes", chunk)
                        yield Case(*one, "two passes, nothing kept", chunk)


def step_of(case: Case, options: Options, model: FewShotRecognizer) -> Callable[[Episode], None]:
    """Forward and backward of one task."""

    def region() -> AbstractContextManager[Any]:
        bf16 = options.precision == "bf16"
        return torch.autocast(options.device.partition(":")[0], torch.bfloat16) if bf16 else nullcontext()

    if case.chunk is not None:
        two_pass = TwoPass(model, case.chunk, keep_products=case.way == "two passes", autocast=region)
        return lambda episode: two_pass.backward([episode], loss) and None

    def step(episode: Episode) -> None:
        with region():
            output = model(episode)
        loss(output, episode).backward()

    return step


def run_case(case: Case, options: Options, folder: Path) -> dict[str, Any]:
    """In a process of its own: memory, times, and the gradients into a file."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if options.card_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(options.card_gb * 1e9 / total, device)
    model = recognizer(case.trained, options.image_size, options.frames, case.way == "checkpointed").to(device)
    episode = task(case.shots, case.queries, options.image_size, options.frames).to(device)
    step = step_of(case, options, model)
    try:
        _small_step(step, episode)
        model.zero_grad(set_to_none=True)
        memory = _peak_mb(lambda: step(episode), device)
        save_file({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}, _file(folder, case))
        seconds = [_seconds(lambda: step(episode), device) for _ in range(options.steps)]
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    result = {"peak_extra_mb": memory, "seconds": round(statistics.median(seconds), 3)}
    if device.type == "cpu":
        model.zero_grad(set_to_none=True)
        with LiveBytes() as live:
            step(episode)
        result["peak_extra_tensor_mb"] = round(live.peak / 1e6, 1)
    return result


def _small_step(step: Callable[[Episode], None], episode: Episode) -> None:
    """One video a class; in a chunk as large as the real one only where that is one."""
    support = torch.stack([episode.support[(episode.support_labels == c).nonzero()[0, 0]] for c in range(2)])
    labels = torch.arange(2, device=support.device)
    step(Episode(support, labels, episode.query[:1], labels[:1], ("a", "b")))


def _peak_mb(work: Callable[[], None], device: torch.device) -> float | None:
    """The most above what is held now: on a CPU of the whole process, None where the system does not tell."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        work()
        return None
    reset.write_text("5")  # the peak starts anew from what is held now
    before = _status_mb("VmRSS")
    work()
    return round(_status_mb("VmHWM") - before, 1)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """CPU time, which leaves out what other processes take; on a GPU wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _file(folder: Path, case: Case) -> Path:
    words = (case.trained, case.shots, case.queries, case.way.replace(" ", "_"), case.chunk)
    return folder / f"{'-'.join(map(str, words))}.safetensors"


def gradient_difference(one: Path, other: Path) -> float:
    """The largest difference of two sets of gradients, relative to the largest gradient of the second."""
    found, expected = load_file(one), load_file(other)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    return float(f"{max((found[n] - g).abs().max().item() for n, g in expected.items()) / largest:.1e}")


def measured(options: Options) -> list[dict[str, Any]]:
    """All cases, each beside the plain one of its task."""
    rows: list[dict[str, Any]] = []
    plain: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for case in cases(options):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
                result = executor.submit(run_case, case, options, Path(name)).result()
            rows.append({**asdict(case), "videos": case.videos, **result})
            if case.way == "plain":
                plain, plain_case = result, case
            elif "out_of_memory" not in plain and "out_of_memory" not in result:
                rows[-1] |= _beside(result, plain)
                rows[-1]["gradient_difference"] = gradient_difference(
                    _file(Path(name), case), _file(Path(name), plain_case)
                )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _beside(result: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    names = {"peak_extra_mb": "memory_share", "peak_extra_tensor_mb": "tensor_memory_share", "seconds": "time_ratio"}
    return {
        share: round(result[key] / plain[key], 3) for key, share in names.items() if result.get(key) and plain.get(key)
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "what": "memory above what is held before, and time, of one training step on ViT-B/16 with random weights",
        "hardware": hardware()
        | ({"gpu": torch.cuda.get_device_name(options.device)} if "cuda" in options.device else {}),
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "wanted_at_5_shots": WANTED,
        "measured": measured(options),
    }
    if options.table:
        report["reasoned_for_24_gb"] = reasoned_table(recognizer, task, loss)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report.get("reasoned_for_24_gb"), indent=2))


if __name__ == "__main__":
    main()
