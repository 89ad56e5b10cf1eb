"""AIM (Yang et al., ICLR 2023, arXiv 2302.03024): three bottlenecks around the layers of a frozen block.

The block's attention runs twice, over frames and then over patches:

    x = x + T(attention_over_frames(LN1 x))
    x = x + S(attention_over_patches(LN1 x)),  S(y) = y + bottleneck(y)
    x = x + MLP(LN2 x) + 0.5 M(LN2 x)

``AIMAdapter`` holds the trained parts ``T``, ``S`` and ``M``, and ``AIMLayer`` applies them to any backbone by hooks on
the parts of its blocks. ``AIMBlock`` is the authors' complete block with CLIP's layers, for released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.spec import BackboneSpec
from ..backbones.state import Layout
from ..errors import DmgalError
from .base import BlockAdapterConfig
from .common import load_reference_state
from .layer import AdapterLayer, cast_for, own_module, with_tokens
from .tuner import BlockTuner

_PARTS = {"T_Adapter": "temporal", "S_Adapter": "spatial", "MLP_Adapter": "parallel"}
_LAYERS = {"D_fc1": "down", "D_fc2": "up"}
_REFERENCE_NAMES = {
    f"{part}.{layer}": f"{our_part}.{our_layer}"
    for part, our_part in _PARTS.items()
    for layer, our_layer in _LAYERS.items()
}


@dataclass(frozen=True)
class AIMShape:
    """Sizes of one block's adapter.

    Args:
        width: channels ``C`` of the tokens.
        bottleneck: channels of the three bottlenecks, ``C / 4`` in the paper.
        scale: factor of the adapter parallel to the MLP.
    """

    width: int
    bottleneck: int
    scale: float = 0.5


class Bottleneck(nn.Module):
    """``[x +] scale * up(GELU(down(x)))`` with ``up`` initialized to zero.

    Args:
        width: channels ``C`` of the tokens.
        bottleneck: channels between ``down`` and ``up``.
        skip: add the input to the output.
        scale: factor of the bottleneck's output.
    """

    def __init__(self, width: int, bottleneck: int, *, skip: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.skip, self.scale = skip, scale
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(..., C)`` to the same shape."""
        width = self.down.in_features
        if tokens.shape[-1] != width:
            raise DmgalError(
                "The tokens do not fit the AIM adapter.",
                received=f"a tensor of shape {tuple(tokens.shape)}",
                expected=f"{width} channels in the last dimension",
                remedy="Build the adapter with the width of the backbone.",
            )
        result = self.up(F.gelu(self.down(tokens)))
        if self.scale != 1:
            result = result * self.scale
        return tokens + result if self.skip else result


class AIMAdapter(nn.Module):
    """The three bottlenecks of one block, called as ``temporal``, ``spatial`` and ``parallel``.

    - ``temporal`` maps the output of the attention over frames to what is added to the tokens.
    - ``spatial`` does the same for the attention over patches: it returns the attention output plus a correction.
    - ``parallel`` maps the normed tokens to what is added to the output of the block's MLP, times ``shape.scale``.

    All three map ``(..., C)`` to the same shape, in any layout.
    """

    def __init__(self, shape: AIMShape) -> None:
        super().__init__()
        self.shape = shape
        self.temporal = Bottleneck(shape.width, shape.bottleneck)
        self.spatial = Bottleneck(shape.width, shape.bottleneck, skip=True)
        self.parallel = Bottleneck(shape.width, shape.bottleneck, scale=shape.scale)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``T_Adapter``, ``S_Adapter`` and ``MLP_Adapter`` of a block of the authors' released code."""
        load_reference_state(self, state, _REFERENCE_NAMES)


class AIMBlock(nn.Module):
    """The authors' complete block: CLIP's attention, layer norms and QuickGELU MLP with an adapter.

    The released code has an optional second bottleneck before the attention over frames, which this block lacks.

    Args:
        width: channels ``C``.
        num_heads: attention heads, a divisor of ``width``.
        num_frames: frames ``T`` per video.
        ratio: bottleneck width divided by ``C``.
        scale: factor of the adapter parallel to the MLP.
    """

    def __init__(self, width: int, num_heads: int, num_frames: int, ratio: float = 0.25, scale: float = 0.5) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_expand = nn.Linear(width, 4 * width)
        self.mlp_contract = nn.Linear(4 * width, width)
        self.adapter = AIMAdapter(AIMShape(width, int(width * ratio), scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(N, V*T, C)``, the authors' layout, to the same shape."""
        tokens = tokens + self.adapter.temporal(self._attend_over_frames(self.attention_norm(tokens)))
        tokens = tokens + self.adapter.spatial(self._attend(self.attention_norm(tokens)))
        normed = self.mlp_norm(tokens)
        return tokens + self._mlp(normed) + self.adapter.parallel(normed)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load one block's weights under the names of the authors' released code."""
        block = {
            "attn": "attention",
            "attn.out_proj": "attention.out_proj",
            "ln_1": "attention_norm",
            "ln_2": "mlp_norm",
            "mlp.c_fc": "mlp_expand",
            "mlp.c_proj": "mlp_contract",
        }
        load_reference_state(self, state, block | {key: f"adapter.{ours}" for key, ours in _REFERENCE_NAMES.items()})

    def _attend_over_frames(self, tokens: Tensor) -> Tensor:
        """Attend from each token to the tokens at its position in all frames of its video, ``(N, V*T, C)``."""
        if tokens.shape[1] % self.num_frames:
            raise DmgalError(
                "The frames do not form complete videos.",
                received=f"{tokens.shape[1]} frames in tokens of shape {tuple(tokens.shape)}",
                expected=f"(tokens, videos * {self.num_frames} frames, channels)",
                remedy="Build the block with the number of frames per video.",
            )
        attended = self._attend(rearrange(tokens, "n (v t) c -> t (n v) c", t=self.num_frames))
        return rearrange(attended, "t (n v) c -> n (v t) c", n=len(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    def _mlp(self, tokens: Tensor) -> Tensor:
        hidden = self.mlp_expand(tokens)
        return self.mlp_contract(hidden * torch.sigmoid(1.702 * hidden))


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

    kind: ClassVar[str] = "AIM"
    title: ClassVar[str] = "AIM (Yang et al., ICLR 2023)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)
        if not isinstance(self.scale, (int, float)) or not math.isfinite(self.scale):
            raise self.wrong("scale", "a finite number")

    def complete(self, spec: BackboneSpec) -> None:
        if spec.rotary:
            raise self.unsupported_backbone(
                "its attention rotates queries and keys by their image position, and AIM would apply it over frames",
                "Use a backbone with learned positions, or another adapter.",
            )
        if spec.attend is None or spec.parts is None or None in (*vars(spec.parts).values(),):
            raise self.unsupported_backbone(
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

    def _after_attention(self, attention: nn.Module, inputs: object, output: object) -> object:
        if self._in_temporal_pass:  # hides its attention maps from hooks of libraries that record those of the model
            return (output[0], *(None for _ in output[1:])) if isinstance(output, tuple) else output
        return with_tokens(output, self._spatial)

    def _spatial(self, tokens: Tensor) -> Tensor:
        return self.token_by_token(tokens, _correct)

    def _after_mlp(self, mlp: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
        normed = (*args, *kwargs.values())[0]

        def add(adapter: AIMAdapter, tokens: Tensor) -> Tensor:
            inputs = normed
            if self.is_mixed:
                inputs = self.part_of(self.layout.videos(self.spec.exit.tokens(normed), tokens.shape[1]))
            return tokens + adapter.parallel(cast_for(adapter, inputs))

        return self.token_by_token(output, add)


def _correct(adapter: AIMAdapter, attended: Tensor) -> Tensor:
    return adapter.spatial(attended)


class AIMModel(BlockTuner):
    """The tuner of ``AIMConfig``."""

    tuner_layer_cls = AIMLayer
