"""Training step on ViT-B/16 shapes: adapters on a frozen backbone against full fine-tuning, and bf16 against float32.

    python -m dmgal.bench.training --threads 2                                      # 10 minutes of 2 cores, 14 GB
    python -m dmgal.bench.training --threads 2 --image-size 112 --part compiled         # effect of torch.compile
    python -m dmgal.bench.training --run RUN --videos data/moving_shapes --part accuracy    # accuracy in bf16
    python -m dmgal.bench.training --image-size 64 --frames 2                       # rough, 1-2 minutes
    python -m dmgal.bench.training --device cuda

A step is forward, backward and AdamW on one 5-way task of noise; the backbone has random weights, on which time and
memory do not depend. Each case runs in a fresh process, one after the other in rounds, so that what slows the machine
for a while slows all alike; ratios are taken within a round. A step on a small task in front is not counted. Times are
CPU time over the number of threads, on a GPU wall time; memory is the most that the process held above what it held
before the model was made. Encoding is that of the task's support videos, as an evaluation does it.

What bf16 does to accuracy is measured on a trained run, the same episodes of its test classes in both. Each call writes
its part of ``bench/results/training.json`` and leaves the other.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.bench import memory
from dmgal.bench.measuring import cpu_seconds, hardware, median_with_interval, process_bytes, seconds, write_report
from dmgal.episodes import Episode, EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import encode_videos, evaluate, paired_difference
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.two_pass.memory import memory_of
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, TestTransform

WANTED = {
    "time_at_most": 0.78,
    "time_limit_without_adapters": 0.67,
    "memory_at_most": 0.65,
    "bf16_faster_at_least": 1.9,
}


@dataclass(frozen=True)
class Case:
    """Training step to measure.

    Args:
        chunk: videos in a chunk of two passes; None: one pass.
        share: of what one pass takes, counted on a small task, the budget of two passes; None: no budget.
        half_backbone: the frozen weights in bf16, too.
        compiled: the backbone's blocks, by torch.compile.
    """

    trained: memory.Trained
    precision: Literal["float32", "bf16"]
    chunk: int | None = None
    share: float | None = None
    half_backbone: bool = False
    compiled: bool = False


CASES = {
    "everything_float32": Case("everything", "float32"),
    "adapters_float32": Case("adapters", "float32"),
    "adapters_float32_two_passes": Case("adapters", "float32", chunk=1),
    "adapters_float32_two_passes_half": Case("adapters", "float32", chunk=1, share=0.5),
    "everything_bf16": Case("everything", "bf16"),
    "adapters_bf16": Case("adapters", "bf16"),
    "adapters_bf16_half_backbone": Case("adapters", "bf16", half_backbone=True),
}
"""Precision of the step. bf16 uses autocast."""
ENCODING = ("adapters_float32", "adapters_bf16", "adapters_bf16_half_backbone")
COMPILED = {
    "adapters_float32": CASES["adapters_float32"],
    "adapters_float32_compiled": Case("adapters", "float32", compiled=True),
    "adapters_bf16": CASES["adapters_bf16"],
    "adapters_bf16_compiled": Case("adapters", "bf16", compiled=True),
}
RATIOS = {
    "adapters_over_full_time": ("seconds", "adapters_float32", "everything_float32"),
    "adapters_over_full_memory": ("peak_mb", "adapters_float32", "everything_float32"),
    "two_passes_over_full_time": ("seconds", "adapters_float32_two_passes", "everything_float32"),
    "two_passes_over_full_memory": ("peak_mb", "adapters_float32_two_passes", "everything_float32"),
    "two_passes_half_over_full_time": ("seconds", "adapters_float32_two_passes_half", "everything_float32"),
    "two_passes_half_over_full_memory": ("peak_mb", "adapters_float32_two_passes_half", "everything_float32"),
    "adapters_over_full_time_in_bf16": ("seconds", "adapters_bf16", "everything_bf16"),
    "adapters_over_full_memory_in_bf16": ("peak_mb", "adapters_bf16", "everything_bf16"),
    "float32_over_bf16_training_time": ("seconds", "adapters_float32", "adapters_bf16"),
    "float32_over_bf16_encoding_time": ("encoding_seconds", "adapters_float32", "adapters_bf16"),
    "float32_over_bf16_backbone_training_time": ("seconds", "adapters_float32", "adapters_bf16_half_backbone"),
    "float32_over_bf16_backbone_encoding_time": ("encoding_seconds", "adapters_float32", "adapters_bf16_half_backbone"),
}
COMPILED_RATIOS = {
    "compiled_over_plain_time": ("seconds", "adapters_float32_compiled", "adapters_float32"),
    "compiled_over_plain_time_in_bf16": ("seconds", "adapters_bf16_compiled", "adapters_bf16"),
    "compiled_over_plain_memory": ("peak_mb", "adapters_float32_compiled", "adapters_float32"),
}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    rounds: int = 2
    """Number of processes of each case."""
    steps: int = 1
    """Number of timed steps in each process."""
    shots: int = 1
    queries: int = 1
    image_size: int = 224
    """A multiple of 16."""
    frames: int = 8
    threads: int = 1
    device: str = "cpu"
    run: Path | None = None
    """Run of method/dmgal_adapter on moving shapes, to measure its accuracy in bf16."""
    videos: Path = Path("data/moving_shapes")
    """Videos of that run."""
    episodes: int = 10_000
    out: Path = Path(__file__).parent / "results" / "training.json"
    part: Literal["steps", "compiled", "accuracy", "one case"] = "steps"
    """Part to measure. The last one is for the measuring processes."""
    case: str = "adapters_float32"


def measure_case(options: Options) -> dict[str, float]:
    """Measure in this process median seconds of a step, peak memory, and seconds of encoding the support videos."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    case = {**CASES, **COMPILED}[options.case]
    device = torch.device(options.device)
    before = _held_mb(device)
    model = memory.recognizer(case.trained, options.image_size, options.frames).to(device)
    if case.half_backbone:
        for parameter in model.encoder.backbone.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    way: memory.Way = "plain" if case.chunk is None else "two passes"
    episode = memory.task(options.shots, options.queries, options.image_size, options.frames).to(device)
    sizes = memory.Options(precision=case.precision, device=options.device, chunk=case.chunk or 1)

    def step_of(way: memory.Way, budget: float | None = None) -> Callable[[Episode], object]:
        return memory.step_of(
            memory.Case(case.trained, options.shots, options.queries, way), sizes, model, episode, budget
        )

    budget = None
    if case.share is not None:
        few = memory_of(lambda: memory.small_step(step_of("plain"), episode), device).peak
        budget = case.share * few * (episode.num_support + episode.num_query) / memory.SMALL_VIDEOS
    gradient = step_of(way, budget)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        gradient(episode)
        optimizer.step()

    memory.small_step(gradient, episode)
    optimizer.step()  # allocates its moments
    if case.compiled:
        assert isinstance(model.encoder, FrameEncoder)
        for block in model.encoder._blocks():
            block.compile()
        step()
    times = [_seconds(step, device, options.threads) for _ in range(options.steps)]
    result = {"seconds": statistics.median(times), "peak_mb": _peak_mb(device) - before}
    if options.case in ENCODING:
        model.eval()

        def encode() -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
                model.encode(episode.support)

        result["encoding_seconds"] = _seconds(encode, device, options.threads)
    return result


def measure(options: Options, cases: Iterable[str], ratios: Mapping[str, tuple[str, str, str]]) -> dict[str, object]:
    """Measure every case in turn, round by round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name in found:
            flags = _flags(replace(options, part="one case", case=name))
            words = [sys.executable, "-m", "dmgal.bench.training", *flags]
            printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name].append(json.loads(printed.splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    return {
        "cases": {
            name: {key: median_with_interval([result[key] for result in results]) for key in results[0]}
            for name, results in found.items()
        },
        "ratios": {
            name: median_with_interval([a[key] / b[key] for a, b in zip(found[one], found[other], strict=True)])
            for name, (key, one, other) in ratios.items()
        },
    }


def accuracy_in_bf16(run: Path, videos: Path, episodes: int, device: str) -> dict[str, object]:
    """Return 5-way 1-shot accuracy on novel classes in float32 and under autocast, and the paired difference."""
    import peft

    backbone = peft.PeftModel.from_pretrained(load_backbone("tiny-clip"), str(run / "adapter"))
    model = FewShotRecognizer(FrameEncoder(backbone), BiMHM(center="video", eps=0.0)).to(device)
    catalog = VideoCatalog.from_csv(videos / "split.csv", videos).split("test")
    clips = VideoDataset(ClipSource(catalog), FrameSampler(8, TestTransform(model.encoder.image_size)))
    sampler = EpisodeSampler(catalog.labels, memory.WAYS, 1, 1, episodes, 0, catalog.class_names)
    results = {}
    for precision in ("float32", "bf16"):
        with torch.autocast(device.partition(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext():
            states = encode_videos(model, clips, device=device, progress=False)
            results[precision] = evaluate(model, states, sampler, device, progress=False)
    change = paired_difference(results["bf16"], results["float32"])
    return {
        **{f"{name}_percent": round(result.accuracy.mean, 3) for name, result in results.items()},
        "difference_points": round(change.mean, 3),
        "half_width": round(change.half_width, 3),
        "episodes": episodes,
    }


def _flags(options: Options) -> list[str]:
    values = {name: value for name, value in asdict(options).items() if value is not None}
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _conditions(options: Options) -> dict[str, object]:
    names = ("rounds", "steps", "shots", "queries", "image_size", "frames", "threads", "device")
    return {
        "hardware": hardware() | {"threads": options.threads},
        "options": {name: getattr(options, name) for name in names},
    }


def _held_mb(device: torch.device) -> float:
    """Return the current memory, on a CPU that of the full process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    return (process_bytes("VmRSS") or 0) / 1e6


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _seconds(work: Callable[[], None], device: torch.device, threads: int) -> float:
    """Return CPU time per thread, which excludes other processes, or wall time on a GPU."""
    return cpu_seconds(work) / threads if device.type == "cpu" else seconds(work, device)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    if options.part == "one case":
        print(json.dumps(measure_case(options)))
        return
    report: dict[str, object] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.part == "steps":
        report |= {
            "what": "training step of one 5-way task, ViT-B/16 shapes: DMGAL-Adapters on a frozen backbone, and full "
            "fine-tuning of the bare one",
            "wanted": WANTED,
            **_conditions(options),
            **measure(options, CASES, RATIOS),
        }
    elif options.part == "compiled":
        report["compiled"] = {**_conditions(options), **measure(options, COMPILED, COMPILED_RATIOS)}
    else:
        assert options.run is not None, "--part accuracy needs --run"
        found = accuracy_in_bf16(options.run, options.videos, options.episodes, options.device)
        report["accuracy_in_bf16"] = {"hardware": hardware(), **found}
    write_report(report, options.out)


if __name__ == "__main__":
    main()
