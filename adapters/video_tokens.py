"""Tokens of whole videos, ``(V, T, N, C)``: checked, and their patches seen as volumes of time, height and width."""

from __future__ import annotations

from torch import Tensor

from ..errors import DmgalError


def check_video_tokens(tokens: Tensor, width: int, num_tokens: int | None = None) -> None:
    """Raises a `DmgalError` unless tokens are ``(V, T, N, C)`` with ``C = width`` and ``N = num_tokens``, if given."""
    if tokens.ndim == 4 and tokens.shape[3] == width and num_tokens in (None, tokens.shape[2]):
        return
    count = "tokens" if num_tokens is None else f"{num_tokens} tokens"
    raise DmgalError(
        "An adapter cannot take these tokens.",
        received=f"a tensor of shape {tuple(tokens.shape)}",
        expected=f"(videos, frames, {count}, {width} channels), prefix tokens first",
        remedy="unflatten the frames of a batch with tokens.unflatten(0, (-1, num_frames)), or build the adapter "
        "with the width, prefix tokens and grid of the backbone",
    )


def patch_volume(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """The patches of tokens ``(V, T, N, c)`` as ``(V, c, T, H, W)``: a view, channels last in memory."""
    return tokens[:, :, num_prefix_tokens:].unflatten(2, grid).permute(0, 4, 1, 2, 3)


def patch_tokens(volume: Tensor) -> Tensor:
    """The inverse of `patch_volume`, without the prefix: ``(V, c, T, H, W)`` as ``(V, T, P, c)``."""
    return volume.permute(0, 2, 3, 4, 1).flatten(2, 3)
