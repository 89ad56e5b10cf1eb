"""Adapter that shifts channels along time, with learned gates. It has two numbers per channel of a block.

    y_t = x_t + a * (x_(t-1) - x_t) + b * (x_(t+1) - x_t)

A gate of 1 replaces a channel by that of the previous or next frame, as the fixed shift of TSM does for a part of the
channels (Lin et al., ICCV 2019, arXiv 1811.08383). Here every channel learns how much it shifts. Gates start at 0, so
the adapter starts as the identity. Before the first and after the last frame, the frame itself is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmgal.adapters import AdapterLayer, BlockAdapterConfig, BlockTuner, register
from dmgal.backbones import BackboneSpec


class TemporalShift(nn.Module):
    """Gated shift of the tokens of a block by one frame in both directions.

    Args:
        width: channels ``C`` of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.from_previous = nn.Parameter(torch.zeros(width))
        self.from_next = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(V, T, N, C)`` to the same shape."""
        previous = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
        following = torch.cat([tokens[:, 1:], tokens[:, -1:]], dim=1)
        return tokens + self.from_previous * (previous - tokens) + self.from_next * (following - tokens)


@dataclass
class TemporalShiftConfig(BlockAdapterConfig):
    """Config of the adapter.

    Args:
        blocks: indices of the blocks with an adapter, negative ones counting from the end. None: all blocks.
    """

    blocks: list[int] | None = None

    kind = "TEMPORAL_SHIFT"
    title = "Gated temporal shift, after TSM (Lin et al., ICCV 2019)"

    def complete(self, spec: BackboneSpec) -> None:
        """Fill in the blocks."""
        self.blocks = self.block_indices("blocks", spec.num_blocks)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        """Return the adapter of a block, as wide as the tokens that enter it."""
        return TemporalShift(spec.of_block(block).entry.width) if block in (self.blocks or ()) else None


class TemporalShiftLayer(AdapterLayer):
    """The adapters of one block, which act on its input."""

    child = "shift"
    prefix = "gated_shift_"

    def enter_block(self, tokens: Tensor) -> Tensor:
        """Shift the input of the block, in the block's layout."""
        return self.through(tokens, shape=self.spec.entry)


class TemporalShiftModel(BlockTuner):
    """The tuner of ``TemporalShiftConfig``."""

    tuner_layer_cls = TemporalShiftLayer


register(TemporalShiftConfig, TemporalShiftModel)
