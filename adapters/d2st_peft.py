"""D2ST-Adapter in a backbone: behind each block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.spec import BackboneSpec
from .block_config import BlockAdapterConfig, options_of
from .d2st import D2STAdapter, D2STShape
from .layer import AdapterLayer
from .registration import ExternalPeftType
from .tuner import BlockTuner


@dataclass
class D2STConfig(BlockAdapterConfig):
    """D2ST-Adapter (Pei et al.).

    Args:
        blocks: indices of the blocks that get one (negative ones count from the end); None: all.
        bottleneck: width of the adapter, which divides by heads and groups; None: a quarter of the backbone's, rounded
            down to what divides.
        num_heads: of its deformable attention.
        num_groups: groups of channels, each with sampling places of its own.
    """

    blocks: list[int] | None = None
    bottleneck: int | None = None
    num_heads: int = 4
    num_groups: int = 4

    kind: ClassVar[ExternalPeftType] = ExternalPeftType("D2ST")
    title: ClassVar[str] = "D2ST-Adapter (Pei et al., arXiv 2312.01431)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bottleneck", "num_heads", "num_groups"):
            self.check_whole_number(name, 1)

    def complete(self, spec: BackboneSpec) -> None:
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        unit = math.lcm(self.num_heads, self.num_groups)
        self.bottleneck = self.bottleneck or max(unit, spec.width // 4 // unit * unit)
        self._shape()

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None
        return D2STAdapter(self._shape()) if block in self.blocks else None

    def _shape(self) -> D2STShape:
        options = ("width", "bottleneck", "num_frames", "num_prefix_tokens", "grid", "num_heads", "num_groups")
        return D2STShape(**options_of(self, options))


class D2STLayer(AdapterLayer):
    """Acts on what the block returns."""

    rank = 1
    child = "d2st"
    prefix = "d2st_"

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        yield self.after(block, _act)


class D2STModel(BlockTuner):
    """The tuner of ``D2STConfig``."""

    prefix = D2STLayer.prefix
    tuner_layer_cls = D2STLayer


def _act(adapter: D2STAdapter, tokens: Tensor) -> Tensor:
    return adapter(tokens)
