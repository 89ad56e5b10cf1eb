"""Functions that several adapters and heads share.

- ``load_reference_state`` loads weights under the names of the authors' released code.
- ``SharedDropout`` has one mask for all videos, so that results do not depend on which process has which video.
- ``sinusoidal_position_code`` is that of "Attention is all you need", which DMGAL, TRX and STRM add to their tokens.
- ``check_video_tokens``, ``patch_volume`` and ``patch_tokens`` handle tokens of videos, ``(V, T, N, C)``.
- ``check_equal_frames`` refuses videos of other lengths than those they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import DmgalError


def load_reference_state(
    module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], ignored: Collection[str] = ()
) -> None:
    """Load ``state`` into all of ``module``. An error leaves the module unchanged.

    Args:
        module: the module to fill.
        state: tensors under the authors' names.
        names: our names of parameters, or of submodules with parameters, by the authors' names.
        ignored: authors' names of tensors that are not learned, or that their forward never uses.

    Raises:
        DmgalError: names are unknown or missing, or shapes differ.
    """
    renamed = {}
    for key, tensor in state.items():
        our_name = _our_name(key, names, ignored)
        if our_name is not None:
            renamed[our_name] = tensor
    current = module.state_dict()
    # Exports often lack the batch counts of batch norms, which matter only to a momentum that is not used here.
    missing = [key for key in current if key not in renamed and not key.endswith("num_batches_tracked")]
    unknown = [key for key in renamed if key not in current]
    if missing or unknown:
        raise DmgalError(
            f"The reference weights do not fit {type(module).__name__}.",
            received=f"missing {missing or 'none'}, unknown {unknown or 'none'}",
            expected=f"the parts {sorted(names)}",
            remedy="Pass the part of the checkpoint that belongs to this module, with the prefix of its name removed.",
        )
    differing = [
        f"{key} {tuple(tensor.shape)} for {tuple(current[key].shape)}"
        for key, tensor in renamed.items()
        if tensor.shape != current[key].shape
    ]
    if differing:
        raise DmgalError(
            f"The reference weights have other shapes than {type(module).__name__}.",
            received="; ".join(differing),
            expected="equal shapes",
            remedy="Build the module with the channels, frames and reduction of the checkpoint.",
        )
    module.load_state_dict(renamed, strict=False)


def _our_name(key: str, names: Mapping[str, str], ignored: Collection[str]) -> str | None:
    """Return our name of an authors' tensor, None for an ignored one.

    An unknown tensor keeps its name with a mark. The caller reports it.
    """
    if key in ignored:
        return None
    if key in names:
        return names[key]
    owner, _, leaf = key.rpartition(".")
    return f"{names[owner]}.{leaf}" if owner in names else f"{key} (reference name)"


class SharedDropout(nn.Dropout):
    """Dropout that drops the same entries of every video, and different ones in every call.

    With the same random state, a batch gives the same result at once, in parts, or distributed over processes. The
    released code draws a mask for each video.

    Args:
        p: probability that an entry is dropped.
        video_dim: dimension of the videos. The default fits ``(..., V, T, P, C)``.
    """

    def __init__(self, p: float = 0.5, video_dim: int = -4) -> None:
        super().__init__(p)
        self.video_dim = video_dim

    def forward(self, values: Tensor) -> Tensor:
        """Map values ``(..., V, T, P, C)`` to the same shape, with a mask of the shape of one video."""
        if not self.training or self.p == 0:
            return values
        shape = list(values.shape)
        shape[self.video_dim] = 1
        # The CPU draws the mask, so that every device drops the same entries.
        return values * F.dropout(torch.ones(shape), self.p).to(values)


def sinusoidal_position_code(length: int, width: int, *, like: Tensor, scale: float = 0.1) -> Tensor:
    """Return a fixed code per position, ``(length, width)``, with sines in even columns and cosines in odd ones.

    The width may be odd. The result has the device and dtype of ``like``. The amplitude ``scale`` is 0.1 in the
    released code of DMGAL, TRX and STRM.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # bfloat16 cannot represent positions above 256 exactly
    positions = torch.arange(length, device=like.device, dtype=dtype)
    frequencies = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=dtype) * (-math.log(10000.0) / width))
    angles = positions[:, None] * frequencies  # (length, ceil(width / 2))
    code = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
    return (scale * code).to(like.dtype)


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


def check_equal_frames(method: str, support_frames: int, query_frames: int) -> None:
    """Raise DmgalError unless support and query videos have the same number of frames."""
    if support_frames != query_frames:
        raise DmgalError(
            f"{method} compares frames of the same index.",
            received=f"{support_frames} support frames, {query_frames} query frames",
            expected="the same number of frames in support and query videos",
            remedy="Sample both with the same number of frames, or use a head like BiMHM or OTAM.",
        )


def patch_volume(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """Return the patches of tokens ``(V, T, N, c)`` as a view ``(V, c, T, H, W)``, channels last in memory."""
    return rearrange(tokens[:, :, num_prefix_tokens:], "v t (h w) c -> v c t h w", h=grid[0], w=grid[1])


def patch_tokens(volume: Tensor) -> Tensor:
    """Invert `patch_volume`, ``(V, c, T, H, W)`` to ``(V, T, P, c)`` without the prefix."""
    return rearrange(volume, "v c t h w -> v t (h w) c")
