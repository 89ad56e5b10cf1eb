"""Time of a step with several tasks: their videos in one batch or task by task, alternating in one process.

    python -m dmgal.bench.task_batching

The demo's recognizer (tiny-clip with DMGAL-Adapters, Bi-MHM), forward and backward of 1, 2 and 4 tasks, 5-way 1-shot
with two query videos per class. Reports the median over rounds of time apart / time together, with the quartiles.
Writes ``bench/results/task_batching.json``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from dmgal.backbones import FrameEncoder, load_backbone, use_memory_efficient_gelu
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.heads import BiMHM

OUT = Path(__file__).parent / "results" / "task_batching.json"
ROUNDS = 15


def recognizer() -> FewShotRecognizer:
    """Build the demo's DMGAL-Adapter."""
    import peft

    from dmgal.adapters import DmgalConfig

    model = peft.get_peft_model(load_backbone("tiny-clip"), DmgalConfig())
    return FewShotRecognizer(
        FrameEncoder(use_memory_efficient_gelu(model)), BiMHM(center="video", logit_scale=10.0, eps=0.0)
    ).train()


def random_task(seed: int) -> Episode:
    """Return a 5-way 1-shot task of noise with two queries per class. Time does not depend on the content."""
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randint(0, 256, (15, 8, 3, 48, 48), dtype=torch.uint8, generator=generator)
    labels = torch.arange(5)
    return Episode(videos[:5], labels, videos[5:], labels.repeat_interleave(2), tuple("abcde"))


def seconds(work: Callable[[list[Episode]], None], tasks: list[Episode]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    work(tasks)
    return time.perf_counter() - start


def main() -> None:
    """Measure and write the report."""
    model = recognizer()

    def together(tasks: list[Episode]) -> None:
        # on a CPU the recognizer's own forward runs task by task; this benchmark is the reason
        torch.stack([output.logits.square().mean() for output in model._answers(tasks)]).sum().backward()

    def apart(tasks: list[Episode]) -> None:
        for task in tasks:
            together([task])

    report: dict[str, Any] = {"date": date.today().isoformat(), "torch": torch.__version__}
    report["threads"] = torch.get_num_threads()
    for count in (1, 2, 4):
        tasks = [random_task(seed) for seed in range(count)]
        rounds = [(seconds(apart, tasks), seconds(together, tasks)) for _ in range(ROUNDS + 2)][2:]
        low, middle, high = statistics.quantiles([one / other for one, other in rounds], n=4)
        report[f"{count}_tasks"] = {
            "apart_over_together": {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]},
            "together_ms_per_task": round(1000 * statistics.median(other for _, other in rounds) / count, 1),
        }
    OUT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
