"""A training step on ViT-B/16 shapes: adapters on a frozen backbone against full fine-tuning, and bf16 against float32.

    python -m dmgal.bench.training                                         # an hour of one core, 12 GB of RAM
    python -m dmgal.bench.training --image-size 64 --frames 2 --steps 1    # roughly, in a minute
    python -m dmgal.bench.training --device cuda

A step is forward, backward and AdamW on one 5-way task of noise; the backbone has random weights, on which time and
memory do not depend. Each case runs in fresh processes, one after the other in rounds, so that what slows the machine
for a while slows all alike; a step in front is not counted. Time is CPU time on a CPU, wall time on a GPU; memory is
the most that the process held above what it held before the model was made. What bf16 does to accuracy is measured on
a trained run: ``--run RUN``, the same episodes of its test classes in both. Writes ``bench/results/training.json``;
training in two passes is in ``bench/results/memory.json``.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.bench.measuring import hardware, median_with_interval
from dmgal.bench.memory import Trained, loss, recognizer, task
from dmgal.episodes import (
    EpisodeSampler,
    FewShotRecognizer,
    VideoCatalog,
    encode_videos,
    evaluate,
    paired_difference,
)
from dmgal.episodes.dataset import VideoDataset
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.transforms import TestTransform

WANTED = {
    "time_at_most": 0.78,
    "time_limit_without_adapters": 0.67,
    "memory_at_most": 0.65,
    "bf16_faster_at_least": 1.9,
}
CASES: tuple[tuple[Trained, str], ...] = (
    ("everything", "float32"),
    ("adapters", "float32"),
    ("everything", "bf16"),
    ("adapters", "bf16"),
)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    rounds: int = 5
    """Processes of each case."""
    steps: int = 2
    """On the clock, in each process."""
    shots: int = 1
    queries: int = 1
    image_size: int = 224
    """A multiple of 16."""
    frames: int = 8
    threads: int = 1
    device: str = "cpu"
    run: Path | None = None
    """A run of method/dmgal_adapter on moving shapes, for what bf16 does to its accuracy; None: not measured."""
    videos: Path = Path("data/moving_shapes")
    """Its videos."""
    episodes: int = 10_000
    out: Path = Path(__file__).parent / "results" / "training.json"
    part: Literal["all", "step"] = "all"
    """This and what follows are set for the processes that measure."""
    trained: Trained = "adapters"
    precision: str = "float32"


def measure_step(options: Options) -> dict[str, float]:
    """In this process: median seconds of a step, and the most memory."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    before = _held_mb(device)
    model = recognizer(options.trained, options.image_size, options.frames).to(device)
    episode = task(options.shots, options.queries, options.image_size, options.frames).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    bf16 = options.precision == "bf16"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            output = model(episode)
        loss(output, episode).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(options.steps):
        start = clock()
        step()
        seconds.append(clock() - start)
    return {"seconds": statistics.median(seconds), "peak_mb": _peak_mb(device) - before}


def measure_all(options: Options) -> dict[str, Any]:
    """Every case in turn, round by round; ratios are taken within a round."""
    found: dict[str, list[dict[str, float]]] = {f"{trained}_{precision}": [] for trained, precision in CASES}
    for _ in range(options.rounds):
        for trained, precision in CASES:
            one = replace(options, part="step", trained=trained, precision=precision, run=None)
            words = [sys.executable, "-m", "dmgal.bench.training", *_flags(one)]
            printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[f"{trained}_{precision}"].append(json.loads(printed.splitlines()[-1]))
    cases = {
        name: {key: median_with_interval([result[key] for result in results]) for key in results[0]}
        for name, results in found.items()
    }
    return {"cases": cases, "ratios": _ratios(found)}


def accuracy_in_bf16(run: Path, videos: Path, episodes: int, device: str) -> dict[str, Any]:
    """Of an adapter on novel classes, 5-way 1-shot: in float32, under autocast, and the paired difference."""
    import peft

    backbone = peft.PeftModel.from_pretrained(load_backbone("tiny-clip"), str(run / "adapter"))
    model = FewShotRecognizer(FrameEncoder(backbone), BiMHM(center="video", eps=0.0)).to(device)
    catalog = VideoCatalog.from_csv(videos / "split.csv", videos).split("test")
    clips = VideoDataset(catalog, 8, TestTransform(model.encoder.image_size[0]))
    sampler = EpisodeSampler(catalog.labels, 5, 1, 1, episodes, 0, catalog.class_names)
    results = {}
    for precision in ("float32", "bf16"):
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            states = encode_videos(model, clips, device=device, progress=False)
            results[precision] = evaluate(model, states, sampler, device, progress=False)
    change = paired_difference(results["bf16"], results["float32"])
    return {
        **{f"{name}_percent": round(result.accuracy.mean, 3) for name, result in results.items()},
        "difference_points": round(change.mean, 3),
        "half_width": round(change.half_width, 3),
        "episodes": episodes,
    }


def _ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    def ratio(one: str, other: str, key: str) -> dict[str, Any]:
        return median_with_interval([a[key] / b[key] for a, b in zip(found[one], found[other], strict=True)])

    return {
        "adapters_over_full_time": ratio("adapters_float32", "everything_float32", "seconds"),
        "adapters_over_full_memory": ratio("adapters_float32", "everything_float32", "peak_mb"),
        "adapters_over_full_time_in_bf16": ratio("adapters_bf16", "everything_bf16", "seconds"),
        "adapters_over_full_memory_in_bf16": ratio("adapters_bf16", "everything_bf16", "peak_mb"),
        "float32_over_bf16_time": ratio("adapters_float32", "adapters_bf16", "seconds"),
    }


def _flags(options: Options) -> list[str]:
    values = {name: value for name, value in asdict(options).items() if value is not None}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _held_mb(device: torch.device) -> float:
    """Now held: on a CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.part == "step":
        print(json.dumps(measure_step(options)))
        return
    report: dict[str, Any] = {
        "what": "training step of one task, ViT-B/16 shapes: DMGAL-Adapters on a frozen backbone, and full fine-tuning",
        "hardware": hardware(),
        "options": {
            name: value for name, value in asdict(options).items() if name not in ("out", "run", "videos", "part")
        },
        **measure_all(options),
        "wanted": WANTED,
    }
    if options.run is not None:
        report["accuracy_in_bf16"] = accuracy_in_bf16(options.run, options.videos, options.episodes, options.device)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
