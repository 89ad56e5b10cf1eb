"""PEFT config, layer and tuner of AIM: hooks on the attention and the MLP of each block, and a second attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec
from .aim import AIMAdapter, AIMShape
from .block_config import BlockAdapterConfig
from .layer import AdapterLayer, cast_for, own_module, with_tokens
from .registration import ExternalPeftType
from .tuner import BlockTuner


@dataclass
class AIMConfig(BlockAdapterConfig):
    """Config of AIM (Yang et al., ICLR 2023) with one temporal adapter per block.

    Args:
        blocks: indices of the blocks with an adapter, negative ones counting from the end. None: all blocks.
        bottleneck: width of the three bottlenecks. None: a quarter of the backbone's width.
        scale: factor of the adapter parallel to the MLP.
    """

    blocks: list[int] | None = None
    bottleneck: int | None = None
    scale: float = 0.5

    kind: ClassVar[ExternalPeftType] = ExternalPeftType("AIM")
    title: ClassVar[str] = "AIM (Yang et al., ICLR 2023)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)
        if not isinstance(self.scale, (int, float)) or not math.isfinite(self.scale):
            raise self.wrong("scale", "a finite number")

    def complete(self, spec: BackboneSpec) -> None:
        if spec.rotary:
            raise self.refuse_backbone(
                "its attention rotates queries and keys by their image position, and AIM would apply it over frames",
                "Use a backbone with learned positions, or another adapter.",
            )
        if spec.attend is None or spec.parts is None or None in (*vars(spec.parts).values(),):
            raise self.refuse_backbone(
                "the norms, the attention and the MLP of its blocks are not all known",
                "Name them in the spec's `parts` and `attend`, or use another adapter.",
            )
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        self.bottleneck = self.bottleneck or max(1, spec.width // 4)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None and self.bottleneck is not None
        return AIMAdapter(AIMShape(spec.width, self.bottleneck, self.scale)) if block in self.blocks else None


class AIMLayer(AdapterLayer):
    """AIM at one block. The temporal pass runs before the block, through the block's own norm and attention."""

    child = "aim"
    prefix = "aim_"

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        self._in_temporal_pass = False
        super().__init__(block, layout, spec)

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        assert self.spec.parts is not None
        yield self._part("attention").register_forward_hook(self._after_attention, prepend=True)
        yield self._part("mlp").register_forward_hook(self._after_mlp, prepend=True, with_kwargs=True)

    def enter_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens, self._temporal_pass)

    def _part(self, name: str) -> nn.Module:
        return own_module(self.block.get_submodule(getattr(self.spec.parts, name)))

    def _temporal_pass(self, adapter: AIMAdapter, tokens: Tensor) -> Tensor:
        """Attend from each token to the tokens at its position in all frames of its video, ``(V, T, N, C)``."""
        normed = self._part("attention_norm")(cast_for(self.block, tokens))
        sequences = rearrange(normed, "v t n c -> (v n) t c")
        attended = self._attend(sequences if self.spec.batch_first else sequences.transpose(0, 1))
        sequences = attended if self.spec.batch_first else attended.transpose(0, 1)
        added = adapter.temporal(cast_for(adapter, sequences))
        return tokens + rearrange(added, "(v n) t c -> v t n c", n=tokens.shape[2])

    def _attend(self, tokens: Tensor) -> Tensor:
        assert self.spec.attend is not None
        self._in_temporal_pass = True
        try:
            return self.spec.attend(self.block, tokens)
        finally:
            self._in_temporal_pass = False

    def _after_attention(self, attention: nn.Module, inputs: Any, output: Any) -> Any:
        if self._in_temporal_pass:
            return output
        return with_tokens(output, self._spatial)

    def _spatial(self, tokens: Tensor) -> Tensor:
        for _, adapter in self.active():
            tokens = adapter.spatial(cast_for(adapter, tokens)).to(tokens.dtype)
        return tokens

    def _after_mlp(self, mlp: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
        normed = (*args, *kwargs.values())[0]
        for _, adapter in self.active():
            output = output + adapter.parallel(cast_for(adapter, normed)).to(output.dtype)
        return output


class AIMModel(BlockTuner):
    """The tuner of ``AIMConfig``."""

    prefix = AIMLayer.prefix
    tuner_layer_cls = AIMLayer
