"""Ladder side network (LST; Sung et al., NeurIPS 2022, arXiv 2206.06522): a small network beside the frozen backbone.

    s_i = g_i down_i(LN x_i) + (1 - g_i) s_{i-1},  g_i = sigmoid(a_i)
    s_i = s_i + temporal_i(s_i),  s_i = s_i + MLP_i(LN s_i)
    result = x_L + up(s_L)

``x_i`` are the tokens after block ``i``, read without a gradient, and ``s_i`` the state of the side network. Nothing
changes before the last block, so that no gradient passes through the backbone. The blocks of the side network are ours:
LST's are small transformer blocks for text, these are a depth-wise convolution over frames and an MLP for video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .base import BlockAdapterConfig
from .common import check_video_tokens
from .layer import AdapterLayer
from .tuner import BlockTuner


@dataclass(frozen=True)
class SideShape:
    """Sizes of one block of the side network.

    Args:
        width: channels ``C`` of the backbone's tokens.
        bottleneck: channels ``s`` of the side network.
        is_first: there is no earlier state.
        is_last: the state is added to the tokens.
    """

    width: int
    bottleneck: int
    is_first: bool
    is_last: bool


class SideBlock(nn.Module):
    """One block of the side network. ``up`` of the last one starts at zero, so nothing changes at first."""

    def __init__(self, shape: SideShape) -> None:
        super().__init__()
        self.shape, bottleneck = shape, shape.bottleneck
        self.down = nn.Linear(shape.width, bottleneck)
        if not shape.is_first:
            self.gate = nn.Parameter(torch.zeros(1))
        self.temporal = nn.Conv1d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.normalization = nn.LayerNorm(bottleneck)
        self.expand = nn.Linear(bottleneck, 2 * bottleneck)
        self.contract = nn.Linear(2 * bottleneck, bottleneck)
        if shape.is_last:
            self.up = nn.Linear(bottleneck, shape.width)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, state: Tensor | None) -> Tensor:
        """Return the state ``(V, T, N, s)`` after tokens ``(V, T, N, C)`` and the state of the block before."""
        check_video_tokens(tokens, self.shape.width)
        entering = self.down(F.layer_norm(tokens.detach(), tokens.shape[-1:]))
        if state is not None:
            gate = self.gate.sigmoid()
            entering = gate * entering + (1 - gate) * state
        sequences = rearrange(entering, "v t n s -> (v n) s t")
        mixed = rearrange(self.temporal(sequences), "(v n) s t -> v t n s", v=len(tokens))
        state = entering + mixed
        return state + self.contract(F.gelu(self.expand(self.normalization(state))))


@dataclass
class SideConfig(BlockAdapterConfig):
    """Config of a ladder side network.

    Args:
        blocks: indices of the blocks that it reads, negative ones counting from the end. It always reads the last one.
            None: all blocks.
        bottleneck: width of the side network. None: an eighth of the backbone's width.
    """

    blocks: list[int] | None = None
    bottleneck: int | None = None

    kind: ClassVar[str] = "SIDE"
    title: ClassVar[str] = "Ladder side network (LST, arXiv 2206.06522), with blocks of our own for video"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)

    def complete(self, spec: BackboneSpec) -> None:
        if spec.sides:
            raise self.unsupported_backbone(
                "blocks of several resolutions, between which the state of the side network would have to be resampled",
                "Use a plain vision transformer, or another adapter.",
            )
        self.blocks = sorted({*self.block_indices("blocks", spec.num_blocks), spec.num_blocks - 1})
        self.bottleneck = self.bottleneck or max(1, spec.width // 8)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None and self.bottleneck is not None
        if block not in self.blocks:
            return None
        is_first, is_last = block == self.blocks[0], block == self.blocks[-1]
        return SideBlock(SideShape(spec.width, self.bottleneck, is_first, is_last))


class SideLayer(AdapterLayer):
    """The side networks at one block. Their states pass from block to block through the layout of the call."""

    child = "side"
    prefix = "ladder_"
    carries_state = True

    def leave_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens, self._advance)

    def _advance(self, adapter: SideBlock, tokens: Tensor) -> Tensor:
        states, shape = self.layout.carried, adapter.shape
        state = states.pop(self.acting, None)
        if shape.is_first:
            state = None
        elif state is None or state.shape[:3] != tokens.shape[:3]:
            raise DmgalError(
                "A side network cannot resume in the middle of a backbone.",
                received="a block without the state of the block before it, as in a recomputed block or after a Cmga",
                expected="a call of all blocks, one after the other",
                remedy="Turn off the library's gradient checkpointing, which saves nothing here, and use a Cmga only "
                "after the last block.",
            )
        state = adapter(tokens, state)
        if shape.is_last:
            return tokens + adapter.up(state)
        states[self.acting] = state
        return tokens


class SideModel(BlockTuner):
    """The tuner of ``SideConfig``."""

    tuner_layer_cls = SideLayer
