"""Cost of a training step where frozen blocks need not be differentiated, or not even run: time and memory.

    python -m dmgal.bench.cheap_steps

A 5-way 1-shot task of ten videos of noise on a ViT-S/16 with random weights, forward and backward. CPU time of each
case over that of Smga-Adapters in all blocks, alternating in one process, and the peak of live tensors of a step:

- ``side network``: a ladder side network (arXiv 2206.06522), so no gradient passes through the backbone;
- ``side network, remembered``: the same with ``train.frame_memory``, for frames that were seen before;
- ``late Smga``: adapters in the last four blocks only;
- ``late Smga, remembered``: the same with ``train.frame_memory``, for frames that were seen before;
- ``two passes``: Smga in all blocks, two-pass training of one video at a time.

Writes ``bench/results/cheap_steps.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import peft
import timm
import torch
import tyro
from torch import nn

from dmgal.adapters import DmgalConfig, SideConfig
from dmgal.backbones import FrameEncoder, FrameMemory
from dmgal.bench.measuring import conditions, median_with_interval, paired_seconds, write_report
from dmgal.episodes import Episode, EpisodeOutput, FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.two_pass.memory import LiveBytes
from dmgal.episodes.two_pass.two_pass import TwoPass

BASE = "Smga in all blocks"
WAYS = 5


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    frames: int = 4
    """Frames per video."""
    pixels: int = 96
    """Height and width of the frames, a multiple of 16."""
    depth: int = 12
    """Number of blocks of the backbone."""
    rounds: int = 5
    """Number of paired measurements of each case."""
    out: Path = Path(__file__).parent / "results" / "cheap_steps.json"
    """Where the result goes."""


def recognizer(options: Options, config: peft.PeftConfig, remembers: bool = False) -> FewShotRecognizer:
    """Return a recognizer with a new adapter in training mode, all with the same random backbone."""
    torch.manual_seed(0)
    name = "vit_small_patch16_224"
    backbone = timm.create_model(name, img_size=options.pixels, depth=options.depth, num_classes=0)
    encoder = FrameEncoder(peft.get_peft_model(backbone, config))
    if remembers:
        encoder.frame_memory = FrameMemory(encoder, 1e10)
    return FewShotRecognizer(encoder, BiMHM(center="video", logit_scale=10.0, eps=0.0)).train()


def random_task(options: Options) -> Episode:
    """Return a 5-way 1-shot task of noise with a query per class."""
    shape = (2 * WAYS, options.frames, 3, options.pixels, options.pixels)
    videos = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(WAYS)
    return Episode(videos[:WAYS], labels, videos[WAYS:], labels, tuple("abcde"))


def loss_of(output: EpisodeOutput, episode: Episode) -> torch.Tensor:
    """Return the cross-entropy of a task."""
    return nn.functional.cross_entropy(output.logits, episode.query_labels)


def step(model: FewShotRecognizer, task: Episode) -> None:
    """Run forward and backward of a task."""
    model.zero_grad(set_to_none=True)
    output: EpisodeOutput = model(task)
    loss_of(output, task).backward()


def two_pass_step(two_pass: TwoPass, task: Episode) -> None:
    """Run forward and backward of a task, one video at a time."""
    two_pass.recognizer.zero_grad(set_to_none=True)
    two_pass.backward([task], loss_of)


def steps_of(options: Options) -> Mapping[str, Callable[[], None]]:
    """Return a step of each case."""
    task, last = random_task(options), range(options.depth - min(4, options.depth - 1), options.depth)

    def smga(blocks: list[int] | None = None) -> peft.PeftConfig:
        return DmgalConfig(smga_blocks=blocks, cmga_blocks=[], num_frames=options.frames)

    models = {
        BASE: recognizer(options, smga()),
        "side network": recognizer(options, SideConfig(num_frames=options.frames)),
        "side network, remembered": recognizer(options, SideConfig(num_frames=options.frames), remembers=True),
        "late Smga": recognizer(options, smga([*last])),
        "late Smga, remembered": recognizer(options, smga([*last]), remembers=True),
    }
    two_pass = TwoPass(recognizer(options, smga()), 1, notify=lambda message: None)
    return {name: partial(step, model, task) for name, model in models.items()} | {
        "two passes": partial(two_pass_step, two_pass, task)
    }


def live_megabytes(work: Callable[[], None]) -> float:
    """Return the peak of the tensors that a step makes after a first one, in MB."""
    work()
    with LiveBytes() as live:
        work()
    return round(live.peak / 1e6, 1)


def measure(options: Options) -> dict[str, dict[str, object]]:
    """Return time and memory of each case, and their ratios to Smga in all blocks."""
    steps = steps_of(options)
    memory = {name: live_megabytes(work) for name, work in steps.items() if name != "two passes"}
    pairs = paired_seconds(steps[BASE], {n: work for n, work in steps.items() if n != BASE}, options.rounds)
    report: dict[str, dict[str, object]] = {BASE: {"live_mb": memory[BASE]}}
    for name, measured in pairs.items():
        report[name] = {"time_ratio": median_with_interval([one / base for one, base in measured])}
        if name in memory:
            report[name] |= {"live_mb": memory[name], "live_ratio": round(memory[name] / memory[BASE], 3)}
    return report


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    write_report({**conditions(options), "results": measure(options)}, options.out)


if __name__ == "__main__":
    main()
