"""PEFT config, layer and tuner of ST-Adapter.

An adapter acts before each block's attention. In the 24-adapter form a second one acts before its MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec
from .block_config import BlockAdapterConfig
from .layer import AdapterLayer, own_module
from .registration import ExternalPeftType
from .st_adapter import STAdapter, STAdapterShape
from .tuner import BlockTuner

Places = Literal["attention", "attention+mlp"]


@dataclass
class STAdapterConfig(BlockAdapterConfig):
    """Config of ST-Adapter (Pan et al., NeurIPS 2022).

    Args:
        blocks: indices of the blocks with an adapter, negative ones counting from the end. None: all blocks.
        bottleneck: width of the adapter. None: half of the backbone's width.
        kernel: odd sizes of the convolution over frames, rows and columns.
        places: before the attention (12 adapters in a ViT-B), or before attention and MLP (24).
    """

    blocks: list[int] | None = None
    bottleneck: int | None = None
    kernel: tuple[int, int, int] = (3, 1, 1)
    places: Places = "attention"

    kind: ClassVar[ExternalPeftType] = ExternalPeftType("ST_ADAPTER")
    title: ClassVar[str] = "ST-Adapter (Pan et al., NeurIPS 2022)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)
        self.check_choice("places", ("attention", "attention+mlp"))
        if not isinstance(self.kernel, (list, tuple)) or [type(size) for size in self.kernel] != [int, int, int]:
            raise self.wrong("kernel", "three odd numbers: frames, rows and columns")

    def complete(self, spec: BackboneSpec) -> None:
        if self.places == "attention+mlp" and (spec.parts is None or spec.parts.mlp_norm is None):
            raise self.refuse_backbone(
                "the norm before the MLP of its blocks is not known",
                "Use places='attention', the 12-adapter form.",
            )
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        self.bottleneck = self.bottleneck or max(1, spec.width // 2)
        frames, rows, columns = self.kernel
        self.kernel = (frames, rows, columns)  # JSON turns the tuple into a list

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None and self.bottleneck is not None
        if block not in self.blocks:
            return None
        shape = STAdapterShape(spec.width, self.bottleneck, spec.num_prefix_tokens, spec.grid, self.kernel)
        return _STAdapters(shape, self.places)


class _STAdapters(nn.Module):
    """The ST-Adapters of one block, before its attention and before its MLP."""

    def __init__(self, shape: STAdapterShape, places: Places) -> None:
        super().__init__()
        self.first = STAdapter(shape)
        self.second = STAdapter(shape) if places == "attention+mlp" else None


class STAdapterLayer(AdapterLayer):
    """ST-Adapters of one block.

    The block's residual branch bypasses what the second adapter adds before the MLP. The layer therefore adds it again
    after the block.
    """

    child = "spatiotemporal"
    prefix = "spatiotemporal_"

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        self._pending_deltas: list[Tensor] = []
        super().__init__(block, layout, spec)

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        if self.spec.parts is not None and self.spec.parts.mlp_norm is not None:
            mlp_norm = own_module(block.get_submodule(self.spec.parts.mlp_norm))
            yield self.before(mlp_norm, self._before_mlp, _has_second)

    def enter_block(self, tokens: Tensor) -> Tensor:
        self._pending_deltas.clear()  # a failed or partly recomputed call may have left some
        return self.through(tokens, _before_attention)

    def leave_block(self, tokens: Tensor) -> Tensor:
        while self._pending_deltas:
            delta = self._pending_deltas.pop()
            tokens = tokens + (delta if self.spec.batch_first else delta.transpose(0, 1)).to(tokens.dtype)
        return tokens

    def _before_mlp(self, adapters: _STAdapters, tokens: Tensor) -> Tensor:
        assert adapters.second is not None
        delta = adapters.second.delta(tokens)
        self._pending_deltas.append(rearrange(delta, "v t n c -> (v t) n c"))
        return tokens + delta


class STAdapterModel(BlockTuner):
    """The tuner of ``STAdapterConfig``."""

    prefix = STAdapterLayer.prefix
    tuner_layer_cls = STAdapterLayer


def _before_attention(adapters: _STAdapters, tokens: Tensor) -> Tensor:
    return adapters.first(tokens)


def _has_second(adapters: _STAdapters) -> bool:
    return adapters.second is not None
