"""Cost of a training step: operations on ViT-B/16, counted, and the time of several tasks in one batch or apart.

    python -m dmgal.bench.step_cost operations
    python -m dmgal.bench.step_cost batching

``operations``: a 5-way task with one query video per class, 8 frames of 224 pixels; forward and backward, adapters on a
frozen backbone against full fine-tuning of the bare one. The model lives on torch's meta device: nothing is computed.
Writes ``bench/results/step_cost.json``.

``batching``: the demo's recognizer (tiny-clip with DMGAL-Adapters, Bi-MHM), forward and backward of 1, 2 and 4 tasks,
5-way 1-shot with two query videos per class. Reports the median over rounds of time apart / time together, with the
quartiles. Writes ``bench/results/task_batching.json``.
"""

from __future__ import annotations

import statistics
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal

import peft
import torch
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dmgal.adapters import DmgalConfig
from dmgal.backbones import FrameEncoder, load_backbone, use_memory_efficient_gelu
from dmgal.bench.measuring import seconds, write_report
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.heads import BiMHM

RESULTS = Path(__file__).parent / "results"
FRAMES, WAYS, ROUNDS = 8, 5, 15


def operations() -> dict[str, object]:
    """Return trained parameters and operations by model."""
    adapted: nn.Module = peft.get_peft_model(load_backbone("open_clip:ViT-B-16"), DmgalConfig())
    bare = load_backbone("open_clip:ViT-B-16").requires_grad_(True)
    report: dict[str, object] = {"backbone": "ViT-B/16, 224 px"}
    for name, backbone in {"dmgal_adapter": adapted, "full_fine_tuning": bare}.items():
        encoder = FrameEncoder(backbone).to("meta").train()
        trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        costs = {f"{shots}_shot_task_tflop": teraflops(encoder, shots) for shots in (1, 5)}
        report[name] = {"trained_parameters": trained, **costs}
    return report


def teraflops(encoder: FrameEncoder, shots: int) -> float:
    """Return the floating point operations of one training task in 10^12. A multiply-add counts as two."""
    support, query = (torch.empty(n, FRAMES, 3, 224, 224, device="meta") for n in (WAYS * shots, WAYS))
    with FlopCounterMode(display=False) as counter:
        features = encoder(support, query)
        (features[0].sum() + features[1].sum()).backward()
    return round(counter.get_total_flops() / 1e12, 3)


def batching() -> dict[str, object]:
    """Return the time of tasks apart over their time together, alternating in one process."""
    backbone = peft.get_peft_model(load_backbone("tiny-clip"), DmgalConfig())
    encoder = FrameEncoder(use_memory_efficient_gelu(backbone))
    model = FewShotRecognizer(encoder, BiMHM(center="video", logit_scale=10.0, eps=0.0)).train()

    def together(tasks: list[Episode]) -> None:
        # on a CPU the recognizer's own forward runs task by task; this benchmark is the reason
        torch.stack([output.logits.square().mean() for output in model._answers(tasks)]).sum().backward()

    def apart(tasks: list[Episode]) -> None:
        for task in tasks:
            together([task])

    report: dict[str, object] = {"threads": torch.get_num_threads()}
    for count in (1, 2, 4):
        tasks = [random_task(seed) for seed in range(count)]
        rounds = [(seconds(partial(apart, tasks)), seconds(partial(together, tasks))) for _ in range(ROUNDS + 2)][2:]
        low, middle, high = statistics.quantiles([one / other for one, other in rounds], n=4)
        report[f"{count}_tasks"] = {
            "apart_over_together": {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]},
            "together_ms_per_task": round(1000 * statistics.median(other for _, other in rounds) / count, 1),
        }
    return report


def random_task(seed: int) -> Episode:
    """Return a 5-way 1-shot task of noise with two queries per class. Time does not depend on the content."""
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randint(0, 256, (15, FRAMES, 3, 48, 48), dtype=torch.uint8, generator=generator)
    labels = torch.arange(WAYS)
    return Episode(videos[:5], labels, videos[5:], labels.repeat_interleave(2), tuple("abcde"))


def main(what: tyro.conf.Positional[Literal["operations", "batching"]]) -> None:
    """Measure and write the report."""
    report: dict[str, object] = {"date": date.today().isoformat(), "torch": torch.__version__}
    report |= operations() if what == "operations" else batching()
    write_report(report, RESULTS / {"operations": "step_cost.json", "batching": "task_batching.json"}[what])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
