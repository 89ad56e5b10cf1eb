"""AIM in a backbone: its parts hang on the attention and the MLP of each block, and the attention is used twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

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
    """AIM (Yang et al., ICLR 2023), with one temporal adapter.

    Args:
        blocks: indices of the blocks that get one (negative ones count from the end); None: all.
        bottleneck: width of its three adapters; None: a quarter of the backbone's.
        scale: multiplies the adapter beside the MLP.
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
                "its attention turns queries and keys by their place in the image, and AIM would use it over frames",
                "take a backbone with learned positions, or another adapter",
            )
        if spec.attend is None or spec.parts is None or None in (*vars(spec.parts).values(),):
            raise self.refuse_backbone(
                "the norms, the attention and the MLP of its blocks are not all known",
                "name them in the spec's parts and attend, or take another adapter",
            )
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        self.bottleneck = self.bottleneck or max(1, spec.width // 4)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None and self.bottleneck is not None
        return AIMAdapter(AIMShape(spec.width, self.bottleneck, self.scale)) if block in self.blocks else None


class AIMLayer(AdapterLayer):
    """The temporal pass runs in front of the block, through the block's own norm and attention."""

    child = "aim"
    prefix = "aim_"

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        self._over_frames = False
        super().__init__(block, layout, spec)

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        assert self.spec.parts is not None
        yield self.before(block, self._temporal_pass)
        yield self._part("attention").register_forward_hook(self._behind_attention, prepend=True)
        yield self._part("mlp").register_forward_hook(self._beside_mlp, prepend=True, with_kwargs=True)

    def _part(self, name: str) -> nn.Module:
        return own_module(self.block.get_submodule(getattr(self.spec.parts, name)))

    def _temporal_pass(self, adapter: AIMAdapter, tokens: Tensor) -> Tensor:
        """Each token attends to the tokens in its place in the other frames of its video; ``(V, T, N, C)``."""
        normed = self._part("attention_norm")(cast_for(self.block, tokens))
        places = normed.transpose(1, 2).flatten(0, 1)  # (V*N, T, C)
        attended = self._attend(places if self.spec.batch_first else places.transpose(0, 1))
        places = attended if self.spec.batch_first else attended.transpose(0, 1)  # (V*N, T, C)
        added = adapter.temporal(cast_for(adapter, places))
        return tokens + added.unflatten(0, (tokens.shape[0], -1)).transpose(1, 2)  # (V, T, N, C)

    def _attend(self, tokens: Tensor) -> Tensor:
        assert self.spec.attend is not None
        self._over_frames = True
        try:
            return self.spec.attend(self.block, tokens)
        finally:
            self._over_frames = False

    def _behind_attention(self, attention: nn.Module, inputs: Any, output: Any) -> Any:
        if self._over_frames:
            return output
        return with_tokens(output, self._spatial)

    def _spatial(self, tokens: Tensor) -> Tensor:
        for _, adapter in self.active():
            tokens = adapter.spatial(cast_for(adapter, tokens)).to(tokens.dtype)
        return tokens

    def _beside_mlp(
        self, mlp: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> Tensor:
        normed = (*args, *kwargs.values())[0]
        for _, adapter in self.active():
            output = output + adapter.parallel(cast_for(adapter, normed)).to(output.dtype)
        return output


class AIMModel(BlockTuner):
    """The tuner of ``AIMConfig``."""

    prefix = AIMLayer.prefix
    tuner_layer_cls = AIMLayer
