"""PEFT config, layer and tuner of D2ST-Adapter, which acts after each block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..backbones.spec import BackboneSpec
from .block_config import BlockAdapterConfig, options_of
from .d2st import D2STAdapter, D2STShape
from .layer import AdapterLayer
from .registration import ExternalPeftType
from .tuner import BlockTuner


@dataclass
class D2STConfig(BlockAdapterConfig):
    """Config of D2ST-Adapter (Pei et al.).

    Args:
        blocks: indices of the blocks with an adapter, negative ones counting from the end. None: all blocks.
        bottleneck: width of the adapter, a multiple of heads and groups. None: a quarter of the backbone's width,
            rounded down to such a multiple.
        num_heads: heads of the deformable attention.
        num_groups: groups of channels, each with its own sampling points.
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
    """D2ST-Adapters of one block, applied to its output."""

    rank = 1
    child = "d2st"
    prefix = "d2st_"

    def leave_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens, _apply)


class D2STModel(BlockTuner):
    """The tuner of ``D2STConfig``."""

    prefix = D2STLayer.prefix
    tuner_layer_cls = D2STLayer


def _apply(adapter: D2STAdapter, tokens: Tensor) -> Tensor:
    return adapter(tokens)
