"""ST-Adapter in a backbone: in front of each block's attention, and in the 24-adapter form in front of its MLP too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec
from .block_config import BlockAdapterConfig
from .layer import AdapterLayer, own_module, with_tokens
from .registration import ExternalPeftType
from .st_adapter import STAdapter, STAdapterShape
from .tuner import BlockTuner

Places = Literal["attention", "attention+mlp"]


@dataclass
class STAdapterConfig(BlockAdapterConfig):
    """ST-Adapter (Pan et al., NeurIPS 2022).

    Args:
        blocks: indices of the blocks that get one (negative ones count from the end); None: all.
        bottleneck: width of the adapter; None: half of the backbone's.
        kernel: of the convolution over frames, rows and columns; odd numbers.
        places: in front of the attention (12 adapters in a ViT-B), or of attention and MLP (24).
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
                "the norm in front of the MLP is not known in its blocks",
                "give places='attention', the 12-adapter form",
            )
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        self.bottleneck = self.bottleneck or max(1, spec.width // 2)
        frames, rows, columns = self.kernel
        self.kernel = (frames, rows, columns)  # a list, where it was read from JSON

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None and self.bottleneck is not None
        if block not in self.blocks:
            return None
        shape = STAdapterShape(spec.width, self.bottleneck, spec.num_prefix_tokens, spec.grid, self.kernel)
        return _STAdapters(shape, self.places)


class _STAdapters(nn.Module):
    """Those of one block: in front of its attention, and of its MLP."""

    def __init__(self, shape: STAdapterShape, places: Places) -> None:
        super().__init__()
        self.first = STAdapter(shape)
        self.second = STAdapter(shape) if places == "attention+mlp" else None


class STAdapterLayer(AdapterLayer):
    """The block's own residual would miss what is added in front of its MLP, so it is added behind the block again."""

    child = "spatiotemporal"
    prefix = "spatiotemporal_"

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        self._added: list[Tensor] = []
        super().__init__(block, layout, spec)

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        yield block.register_forward_pre_hook(self._begin)
        yield self.before(block, _in_front_of_attention)
        if self.spec.parts is not None and self.spec.parts.mlp_norm is not None:
            mlp_norm = own_module(block.get_submodule(self.spec.parts.mlp_norm))
            yield self.before(mlp_norm, self._in_front_of_mlp, _has_second)
            yield block.register_forward_hook(self._correct, prepend=True)

    def _begin(self, block: nn.Module, inputs: Any) -> None:
        """A call that failed, or was computed again in part, may have left something."""
        self._added.clear()

    def _in_front_of_mlp(self, adapters: _STAdapters, tokens: Tensor) -> Tensor:
        assert adapters.second is not None
        added = adapters.second.delta(tokens)  # (V, T, N, C)
        self._added.append(added.flatten(0, 1))
        return tokens + added

    def _correct(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        return with_tokens(output, self._with_added)

    def _with_added(self, tokens: Tensor) -> Tensor:
        while self._added:
            added = self._added.pop()
            tokens = tokens + (added if self.spec.batch_first else added.transpose(0, 1)).to(tokens.dtype)
        return tokens


class STAdapterModel(BlockTuner):
    """The tuner of ``STAdapterConfig``."""

    prefix = STAdapterLayer.prefix
    tuner_layer_cls = STAdapterLayer


def _in_front_of_attention(adapters: _STAdapters, tokens: Tensor) -> Tensor:
    return adapters.first(tokens)


def _has_second(adapters: _STAdapters) -> bool:
    return adapters.second is not None
