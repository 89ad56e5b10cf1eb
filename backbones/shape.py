"""Shapes of the tensors that blocks of a backbone take and return, and their conversion to and from tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

TokenLayout = Literal["b n c", "n b c", "b c h w", "b h w c"]
MAPS: tuple[TokenLayout, TokenLayout] = ("b c h w", "b h w c")


@dataclass(frozen=True)
class BlockShape:
    """Input or output of a block for ``B`` frames, and its conversion to and from tokens.

    Attributes:
        width: number of channels ``C``.
        num_prefix_tokens: tokens before the patches.
        grid: rows and columns of patches, ``H`` and ``W``.
        layout: order of the dimensions: of tokens with ``N`` prefix tokens and patches, or of a map.
        channels_last: True if the channels of a map ``(B, C, H, W)`` are innermost in memory. The layers that follow
            round differently.
        order: index of each patch, row by row, among the patches ``(B, N, C)`` of a backbone that sorts them by window.
            Empty: row by row.
    """

    width: int
    num_prefix_tokens: int
    grid: tuple[int, int]
    layout: TokenLayout = "b n c"
    channels_last: bool = False
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Cached here, because torch.compile cannot trace the lock of a cached property.
        _ = self._order, self._inverse_order

    @property
    def num_dims(self) -> int:
        """Number of dimensions in the block's layout."""
        return 4 if self.layout in MAPS else 3

    @cached_property
    def _order(self) -> Tensor:
        return torch.tensor(self.order, dtype=torch.long)

    @cached_property
    def _inverse_order(self) -> Tensor:
        return self._order.argsort()

    def tokens(self, native: Tensor) -> Tensor:
        """Return tokens ``(B, N, C)`` of a tensor in the block's layout."""
        if self.layout == "b n c":
            return native[:, self._order.to(native.device)] if self.order else native
        if self.layout == "n b c":
            return native.transpose(0, 1)
        return rearrange(native, f"{self.layout} -> b (h w) c").contiguous()

    def native(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, N, C)`` in the block's layout, in memory as in the backbone alone."""
        if self.layout == "b n c":
            return tokens[:, self._inverse_order.to(tokens.device)] if self.order else tokens
        if self.layout == "n b c":
            return tokens.transpose(0, 1)
        rows, columns = self.grid
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        native = rearrange(tokens, f"b (h w) c -> {self.layout}", h=rows, w=columns)
        return native.contiguous(memory_format=memory)


@dataclass(frozen=True)
class ClipShape(BlockShape):
    """Tokens ``(V, P + num_steps * N, C)`` of whole clips, which are the tokens ``(V * num_steps, P + N, C)`` of steps.

    The ``P`` prefix tokens of a clip are those of each of its steps. Back in the clip they are the mean over its steps.

    Attributes:
        num_steps: number of steps in time.
        time_first: True if the patches are ordered by step and then by position, False for the opposite.
    """

    num_steps: int = 1
    time_first: bool = True

    @property
    def _patches(self) -> str:
        return "v (t n) c" if self.time_first else "v (n t) c"

    def tokens(self, native: Tensor) -> Tensor:
        """Return the tokens of the steps."""
        prefix, patches = native[:, : self.num_prefix_tokens], native[:, self.num_prefix_tokens :]
        of_steps = rearrange(patches, f"{self._patches} -> (v t) n c", t=self.num_steps)
        return torch.cat([repeat(prefix, "v p c -> (v t) p c", t=self.num_steps), of_steps], dim=1)

    def native(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the clips. Equal prefix tokens of all steps stay as they are, bit for bit."""
        of_steps, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        of_steps = rearrange(of_steps, "(v t) p c -> v t p c", t=self.num_steps)
        prefix = of_steps[:, 0] + (of_steps - of_steps[:, :1]).mean(1)
        of_clips = rearrange(patches, f"(v t) n c -> {self._patches}", t=self.num_steps)
        return torch.cat([prefix, of_clips], dim=1)


class BlockSides(NamedTuple):
    """Shapes before and after a block. They differ if the block changes the resolution or the width."""

    before: BlockShape
    after: BlockShape
