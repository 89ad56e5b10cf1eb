"""Training steps and a 10,000-episode evaluation on one GPU, on ViT-B/16 shapes in bf16.

    python -m dmgal.bench.gpu
    python -m dmgal.bench.gpu --device cpu --image-size 32 --frames 2 --videos 20 --episodes 100 --rounds 1   # dry run

A step is forward, backward and AdamW with DMGAL-Adapters on a frozen backbone. Its operations are counted, without the
0.4 % that adapters recompute in the backward pass. The floor is their time at the peak of the card (``--peak-tflops``):
7.6 ms at 1 shot and 22.8 at 5, one query per class, at 790 TFLOP/s. No data is read: tasks of noise are on the device,
and clips of the evaluation are in CPU memory. Copying them is timed separately. Writes ``bench/results/gpu.json``.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torch.utils.flop_counter import FlopCounterMode

from dmgal.backbones import FrameEncoder
from dmgal.bench.measuring import conditions, median_with_interval, seconds, write_report
from dmgal.bench.memory import WAYS, loss, recognizer, task
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import encode_videos, evaluate

WANTED = {"share_of_peak_at_least": 0.45, "evaluation_seconds_at_most": 10.0}
WARM_UP, DIFFERENT_CLIPS, BATCH = 3, 32, 32


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    device: str = "cuda"
    """Device of torch, such as cuda or cpu."""
    shots: tuple[int, ...] = (1, 5)
    """Support videos per class, in the step and in the evaluation."""
    tasks: int = 1
    """Tasks of a step, encoded in one batch."""
    image_size: int = 224
    """Height and width of the frames in pixels, a multiple of 16."""
    frames: int = 8
    """Frames per video."""
    rounds: int = 30
    """Number of timed steps."""
    videos: int = 2400
    """Number of videos in the evaluation."""
    episodes: int = 10_000
    """Number of episodes in the evaluation."""
    peak_tflops: float = 790.0
    """Throughput of the GPU on large bf16 products, in TFLOP/s. The default is for an H200."""
    compile: bool = False
    """Compile the blocks with torch.compile."""
    out: Path = Path(__file__).parent / "results" / "gpu.json"
    """File for the results."""


class NoiseClips(Dataset[Tensor]):
    """Any number of clips with few different ones, which saves memory. Encoding time is the same."""

    def __init__(self, options: Options) -> None:
        shape = DIFFERENT_CLIPS, options.frames, 3, options.image_size, options.image_size
        self._clips, self._number = torch.randint(0, 256, shape, dtype=torch.uint8), options.videos

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, video: int) -> Tensor:
        return self._clips[video % DIFFERENT_CLIPS]


def training_step(options: Options, model: FewShotRecognizer, shots: int) -> dict[str, object]:
    """Measure time, rate and memory of a step on tasks that are on the device."""
    device = torch.device(options.device)
    episodes = [task(shots, 1, options.image_size, options.frames).to(device) for _ in range(options.tasks)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(episodes)
        torch.stack([loss(*pair) for pair in zip(outputs, episodes, strict=True)]).mean().backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    teraflops = counter.get_total_flops() / 1e12
    if options.compile:
        assert isinstance(model.encoder, FrameEncoder)
        for block in model.encoder._blocks():
            block.compile()
    for _ in range(WARM_UP):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [seconds(step, device) for _ in range(options.rounds)]
    rate = teraflops / statistics.median(times)
    return {
        "milliseconds": median_with_interval([1000 * value for value in times]),
        "floor_milliseconds": round(1000 * teraflops / options.peak_tflops, 2),
        "teraflop_per_step": round(teraflops, 6),
        "teraflop_per_second": round(rate, 1),
        "share_of_peak": round(rate / options.peak_tflops, 3),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None,
    }


def evaluation(options: Options, model: FewShotRecognizer, shots: int) -> dict[str, float]:
    """Measure seconds for encoding all videos, for all episodes, and for copying the clips to the device."""
    device, clips = torch.device(options.device), NoiseClips(options)
    labels = [video % (WAYS if options.videos < 100 * WAYS else 24) for video in range(options.videos)]
    sampler = EpisodeSampler(labels, WAYS, shots, 1, options.episodes, 0)

    def copy() -> None:
        for first in range(0, len(clips), BATCH):
            torch.stack([clips[video] for video in range(first, min(first + BATCH, len(clips)))]).to(device)

    model.eval()
    with torch.autocast(device.type, torch.bfloat16):
        encode_videos(model, Subset(clips, range(BATCH)), BATCH, device=device, progress=False)  # warms up
        start = time.perf_counter()
        states = encode_videos(model, clips, BATCH, device=device, progress=False)
        encoded = time.perf_counter()
        evaluate(model, states, sampler, device, progress=False)
        done = time.perf_counter()
    return {
        "encoding_seconds": round(encoded - start, 2),
        "copying_alone_seconds": round(seconds(copy, device), 2),
        "episodes_seconds": round(done - encoded, 2),
        "seconds": round(done - start, 2),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.manual_seed(0)
    model = recognizer("adapters", options.image_size, options.frames).to(options.device)
    report: dict[str, object] = {
        "what": "DMGAL-Adapters on a frozen ViT-B/16 in bf16, data excluded",
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu: a dry run",
        **conditions(options),
        "training_step": {f"{shots}_shot": training_step(options, model, shots) for shots in options.shots},
        "evaluation": {f"{shots}_shot": evaluation(options, model, shots) for shots in options.shots},
        "wanted": WANTED,
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
