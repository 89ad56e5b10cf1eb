"""Cost of adapters on ViT-B/16: parameters, operations, and CPU time over the frozen blocks, measured in pairs.

    python -m dmgal.bench.adapters

One process, float32, without gradients, 8 frames of 14 x 14 patches and a class token: frozen blocks of open_clip's
ViT-B/16 as they are and with each adapter. By default one block with one adapter stands for the tower, which is quicker
and less noisy; ``--blocks 12`` runs all. ``FrameEncoder`` without adapters is compared to the bare backbone in the same
way. Writes ``bench/results/adapters.json``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dmgal.adapters.aim import AIMAdapter, AIMShape
from dmgal.adapters.d2st import D2STAdapter, D2STShape
from dmgal.adapters.dmgal import SmgaAdapter
from dmgal.adapters.motion import BottleneckShape
from dmgal.adapters.st_adapter import STAdapter, STAdapterShape
from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.bench.measuring import conditions, extra_percent, median_with_interval, paired_seconds, write_report

BACKBONE = "open_clip:ViT-B-16"
WIDTH, DEPTH, FRAMES, PREFIX, GRID = 768, 12, 8, 1, (14, 14)
TOKENS = PREFIX + GRID[0] * GRID[1]
WANTED_OF_SMGA = {"parameters": 4_000_000, "flops_percent": 6.0, "cpu_time_percent": 7.0}

Place = Callable[[nn.Module, nn.Module, Tensor], Tensor]
"""Function that applies a block and its adapter to tokens ``(V, T, N, C)``."""


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Args:
        rounds: number of rounds over all adapters.
        blocks: number of blocks, 1 to 12.
        videos: batch size.
        threads: number of torch threads. With more than one, CPU time includes the waiting of each.
        encoder_rounds: number of rounds for the full backbone and FrameEncoder, or 0 to skip them.
        seed: seed of weights, inputs and orders.
        out: path of the report.
    """

    rounds: int = 15
    blocks: int = 1
    videos: int = 1
    threads: int = 1
    encoder_rounds: int = 10
    seed: int = 0
    out: Path = Path(__file__).parent / "results" / "adapters.json"


class Tower(nn.Module):
    """Several blocks of the backbone, each with its own adapter."""

    def __init__(self, blocks: nn.ModuleList, adapter: Callable[[], nn.Module], place: Place) -> None:
        super().__init__()
        self.blocks, self.place = blocks, place
        self.adapters = nn.ModuleList(adapter() for _ in blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(V, T, N, C)`` of the same shape."""
        for block, adapter in zip(self.blocks, self.adapters, strict=True):
            tokens = self.place(block, adapter, tokens)
        return tokens


def bare(block: nn.Module, _: object, tokens: Tensor) -> Tensor:
    """Apply the block alone."""
    out: Tensor = block(tokens.flatten(0, 1))
    return out.view(tokens.shape)


def after(block: nn.Module, adapter: nn.Module, tokens: Tensor) -> Tensor:
    """Apply the adapter after the block (Smga and D2ST)."""
    out: Tensor = adapter(bare(block, None, tokens))
    return out


def before(block: nn.Module, adapter: nn.Module, tokens: Tensor) -> Tensor:
    """Apply the adapter before the block (ST-Adapter with one adapter per block)."""
    return bare(block, None, adapter(tokens))


def around(block: nn.Module, adapter: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a block with AIM: attention over frames, attention over patches, MLP."""
    assert isinstance(block, ResidualAttentionBlock) and isinstance(adapter, AIMAdapter)
    num_videos = len(tokens)
    sequences = rearrange(tokens, "v t n c -> (v n) t c")
    temporal = adapter.temporal(block.attention(block.ln_1(sequences)))
    tokens = tokens + rearrange(temporal, "(v n) t c -> v t n c", v=num_videos)
    frames = rearrange(tokens, "v t n c -> (v t) n c")
    frames = frames + adapter.spatial(block.attention(block.ln_1(frames)))
    normed = block.ln_2(frames)
    out: Tensor = frames + block.mlp(normed) + adapter.parallel(normed)
    return out.view(tokens.shape)


def towers(blocks: nn.ModuleList) -> dict[str, Tower]:
    """Return the towers by name. The first has no adapters."""
    smga = BottleneckShape(WIDTH, 192, 24, FRAMES, PREFIX, GRID)
    d2st = D2STShape(WIDTH, 192, FRAMES, PREFIX, GRID)
    st_adapter = STAdapterShape(WIDTH, 384, PREFIX, GRID)
    aim = AIMShape(WIDTH, 192)
    return {
        "frozen": Tower(blocks, nn.Identity, bare),
        "smga": Tower(blocks, lambda: SmgaAdapter(smga), after),
        "d2st": Tower(blocks, lambda: D2STAdapter(d2st), after),
        "st_adapter": Tower(blocks, lambda: STAdapter(st_adapter), before),
        "aim": Tower(blocks, lambda: AIMAdapter(aim), around),
    }


def frozen_blocks(number: int) -> nn.ModuleList:
    """Return the first blocks of the backbone."""
    blocks = load_backbone(BACKBONE).get_submodule("transformer.resblocks").children()
    return nn.ModuleList(itertools.islice(blocks, number)).requires_grad_(False)


def flops() -> dict[str, int]:
    """Return the floating point operations of each one-block tower for one video. A multiply-add counts as two.

    Counted on the meta device and in training mode, where no fused kernel hides an operation from the counter.
    """
    counts = {}
    for name, tower in towers(frozen_blocks(1)).items():
        with FlopCounterMode(display=False) as counter:
            tower.to("meta").train()(torch.empty(1, FRAMES, TOKENS, WIDTH, device="meta"))
        counts[name] = counter.get_total_flops()
    return counts


def adapter_costs(options: Options) -> dict[str, object]:
    """Return the parameters of 12 adapters, and the relative operations and CPU time that one adds to its block."""
    frozen, *adapted = towers(frozen_blocks(options.blocks)).items()
    tokens = torch.randn(options.videos, FRAMES, TOKENS, WIDTH)
    works = {name: partial(tower.eval(), tokens) for name, tower in (frozen, *adapted)}
    pairs = paired_seconds(works.pop(frozen[0]), works, options.rounds, options.seed)
    operations = flops()
    milliseconds = [1000 * base for cases in pairs.values() for _, base in cases]
    costs: dict[str, object] = {
        "frozen": {
            "cpu_milliseconds": median_with_interval(milliseconds),
            "gigaflops_of_one_block": round(operations["frozen"] / 1e9, 2),
        }
    }
    for name, tower in adapted:
        one = sum(parameter.numel() for parameter in tower.adapters[0].parameters())
        costs[name] = {
            "parameters": DEPTH * one,
            "flops_percent": round(100 * (operations[name] / operations["frozen"] - 1), 2),
            "cpu_time_percent": extra_percent(pairs[name]),
        }
    return costs


def encoder_cost(options: Options) -> dict[str, object]:
    """Return the CPU time that `FrameEncoder` without adapters adds to the backbone."""
    backbone = load_backbone(BACKBONE).eval().requires_grad_(False)
    encoder = FrameEncoder(backbone).eval()
    videos = torch.randn(options.videos, FRAMES, 3, 224, 224)
    cases = {"encoder": lambda: encoder.encode(videos)}
    pairs = paired_seconds(lambda: backbone(videos.flatten(0, 1)), cases, options.encoder_rounds, options.seed)
    extra = extra_percent(pairs["encoder"])
    low, high = extra["interval_95"]
    return {"cpu_time_percent": extra, "differs_from_zero": not low <= 0 <= high}


def main(argv: list[str] | None = None) -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with torch.no_grad():
        report: dict[str, object] = {
            "what": "cost of adapters on ViT-B/16, added to the frozen blocks; paired medians with 95 % intervals",
            **conditions(options),
            "adapters": adapter_costs(options),
            "wanted_of_smga_at_most": WANTED_OF_SMGA,
        }
        if options.encoder_rounds:
            report["frame_encoder_over_bare_backbone"] = encoder_cost(options)
    write_report(report, options.out)


if __name__ == "__main__":
    main()
