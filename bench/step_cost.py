"""Operations of one training task on ViT-B/16, counted instead of timed.

    python -m dmgal.bench.step_cost

A 5-way task with one query video per class, 8 frames of 224 pixels; forward and backward, adapters on a frozen backbone
against full fine-tuning of the bare one. The model lives on torch's meta device: nothing is computed. Writes
``bench/results/step_cost.json``.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dmgal.backbones import FrameEncoder, load_backbone

OUT = Path(__file__).parent / "results" / "step_cost.json"
FRAMES, WAYS = 8, 5


def teraflops(encoder: FrameEncoder, shots: int) -> float:
    """Return the floating point operations of one training task in 10^12. A multiply-add counts as two."""
    support, query = (torch.empty(n, FRAMES, 3, 224, 224, device="meta") for n in (WAYS * shots, WAYS))
    with FlopCounterMode(display=False) as counter:
        features = encoder(support, query)
        (features[0].sum() + features[1].sum()).backward()
    return round(counter.get_total_flops() / 1e12, 3)


def encoders() -> dict[str, FrameEncoder]:
    """Return encoders by name: adapters on a frozen ViT-B/16, and the bare backbone with all weights trained."""
    import peft

    from dmgal.adapters import DmgalConfig

    adapted: nn.Module = peft.get_peft_model(load_backbone("open_clip:ViT-B-16"), DmgalConfig())
    bare = load_backbone("open_clip:ViT-B-16").requires_grad_(True)
    return {
        "dmgal_adapter": FrameEncoder(adapted).to("meta").train(),
        "full_fine_tuning": FrameEncoder(bare).to("meta").train(),
    }


def main() -> None:
    """Count and write the report."""
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "backbone": "ViT-B/16, 224 px",
    }
    for name, encoder in encoders().items():
        trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        costs = {f"{shots}_shot_task_tflop": teraflops(encoder, shots) for shots in (1, 5)}
        report[name] = {"trained_parameters": trained, **costs}
    OUT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
