"""Cost and savings of a quantized frozen backbone: memory, time and accuracy of each kind, against floats.

    python -m dmgal.bench.quantized

- Accuracy: ``method/motion`` on novel classes of moving shapes, on the same episodes, with paired differences. Its
  motion adapter was trained on floats.
- Memory and time: a ViT-S/16 of transformers with random weights, whose linear layers are all called. Bytes of its
  weights, CPU time of encoding and of a training step of Smga-Adapters in all blocks over that with floats, alternating
  in one process, and the peak of live tensors of the step.

Writes ``bench/results/quantized.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import peft
import torch
import tyro
from torch import nn

from dmgal.adapters import DmgalConfig
from dmgal.backbones import FrameEncoder, Quantization, quantize
from dmgal.backbones.quantized import KINDS, plain_tensors
from dmgal.bench.cheap_steps import live_megabytes, step
from dmgal.bench.measuring import conditions, median_with_interval, paired_seconds, write_report
from dmgal.bench.motion_transfer import as_json
from dmgal.bench.text import WAYS, motions
from dmgal.episodes import Episode, EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, encode_videos, evaluate, paired_difference
from dmgal.episodes.heads import BiMHM
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.layers import from_mapping, merge_layers, read_layer

SHOTS = (1, 5)
FLOAT = "float32"


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of quantization."""
    clips: int = 20
    """Clips per novel class."""
    episodes: int = 5000
    """Number of episodes."""
    frames: int = 4
    """Frames per video of the measured step."""
    pixels: int = 96
    """Height and width of the frames, a multiple of 16."""
    depth: int = 12
    """Number of blocks of the backbone."""
    rounds: int = 5
    """Number of paired measurements."""
    out: Path = Path(__file__).parent / "results" / "quantized.json"
    """Where the result goes."""


def accuracies(options: Options) -> dict[str, object]:
    """Return the accuracy of each kind by shots, and its paired difference to floats."""
    novel = motions("test", options.clips)
    found: dict[str, dict[int, Evaluation]] = {}
    for kind in (None, *options.kinds):
        layers = [read_layer("method/motion"), {"backbone": {"quantize": kind}}]
        recognizer = build_recognizer(from_mapping(Recipe, merge_layers(layers))).eval()
        states = encode_videos(recognizer, novel.videos, progress=False)
        found[kind or FLOAT] = {
            shots: evaluate(
                recognizer,
                states,
                EpisodeSampler(novel.catalog.labels, WAYS, shots, 1, options.episodes, 0, novel.catalog.class_names),
                progress=False,
            )
            for shots in SHOTS
        }
    return {
        kind: {
            str(shots): {"accuracy": as_json(one.accuracy)}
            | ({} if kind == FLOAT else {"difference": as_json(paired_difference(one, found[FLOAT][shots]))})
            for shots, one in rows.items()
        }
        for kind, rows in found.items()
    }


def vit(options: Options, kind: Quantization | None) -> nn.Module:
    """Return a frozen ViT-S/16 of transformers, the same for each kind."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=options.pixels,
        num_hidden_layers=options.depth,
    )
    model = ViTModel(config).eval().requires_grad_(False)
    return model if kind is None else quantize(model, kind)


def costs(options: Options) -> dict[str, dict[str, object]]:
    """Return bytes of the weights, time and memory of each kind."""
    shape = (2 * WAYS, options.frames, 3, options.pixels, options.pixels)
    videos = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(WAYS)
    task = Episode(videos[:WAYS], labels, videos[WAYS:], labels, tuple("abcde"))
    report: dict[str, dict[str, object]] = {}
    encodings: dict[str, Callable[[], object]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for kind in (None, *cast(tuple[Quantization, ...], options.kinds)):
        name, backbone = kind or FLOAT, vit(options, kind)
        weights = sum(tensor.nbytes for _, tensor in plain_tensors(backbone.state_dict()))
        encodings[name] = partial(_encode, FrameEncoder(vit(options, kind)), videos[:2])
        encoder = FrameEncoder(peft.get_peft_model(backbone, DmgalConfig(cmga_blocks=[], num_frames=options.frames)))
        model = FewShotRecognizer(encoder, BiMHM(center="video", logit_scale=10.0, eps=0.0)).train()
        steps[name] = partial(step, model, task)
        report[name] = {"weights_mb": round(weights / 1e6, 1), "step_live_mb": live_megabytes(steps[name])}
    for field, works in (("encode", encodings), ("step", steps)):
        others = {name: work for name, work in works.items() if name != FLOAT}
        for name, pairs in paired_seconds(works[FLOAT], others, options.rounds).items():
            report[name][f"{field}_time_ratio"] = median_with_interval([one / base for one, base in pairs])
    return report


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table in the documentation."""
    header = ["kind", "weights MB", "encoding, time ratio", "training step, time ratio", "live MB of a step"]
    header += [f"accuracy, {shots} shot{'s' * (shots > 1)}, difference in points" for shots in SHOTS]
    rows = []
    for kind, cost in report["cost"].items():
        ratios = [cost.get(f"{work}_time_ratio", {"median": 1})["median"] for work in ("encode", "step")]
        differences = [report["accuracy"][kind][str(shots)].get("difference") for shots in SHOTS]
        rows.append([
            kind,
            f"{cost['weights_mb']:.0f}",
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{cost['step_live_mb']:.0f}",
            *("" if one is None else f"{one['percent']:+.1f} ± {one['half_width']:.1f}" for one in differences),
        ])  # fmt: skip
    return header, rows


@torch.no_grad()
def _encode(encoder: FrameEncoder, videos: torch.Tensor) -> object:
    return encoder.encode(videos)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    report = {**conditions(options), "accuracy": accuracies(options), "cost": costs(options)}
    write_report(report, options.out)


if __name__ == "__main__":
    main()
