"""Helpers for tokens of videos, ``(V, T, N, C)``: a shape check, and patches as volumes of time, height and width."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from ..errors import DmgalError


def check_video_tokens(tokens: Tensor, width: int, num_tokens: int | None = None) -> None:
    """Raise DmgalError unless tokens are ``(V, T, N, C)`` with ``C = width`` and, if given, ``N = num_tokens``."""
    if tokens.ndim == 4 and tokens.shape[3] == width and num_tokens in (None, tokens.shape[2]):
        return
    count = "tokens" if num_tokens is None else f"{num_tokens} tokens"
    raise DmgalError(
        "The tokens do not fit the adapter.",
        received=f"a tensor of shape {tuple(tokens.shape)}",
        expected=f"(videos, frames, {count}, {width} channels), prefix tokens first",
        remedy="Unflatten the frames of a batch with tokens.unflatten(0, (-1, num_frames)), or build the adapter "
        "with the width, prefix tokens and grid of the backbone.",
    )


def patch_volume(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """Return the patches of tokens ``(V, T, N, c)`` as a view ``(V, c, T, H, W)``, channels last in memory."""
    return rearrange(tokens[:, :, num_prefix_tokens:], "v t (h w) c -> v c t h w", h=grid[0], w=grid[1])


def patch_tokens(volume: Tensor) -> Tensor:
    """Invert `patch_volume`, ``(V, c, T, H, W)`` to ``(V, T, P, c)`` without the prefix."""
    return rearrange(volume, "v c t h w -> v t (h w) c")
