"""ST-Adapter (arXiv 2206.13559): a depth-wise convolution over space and time in a bottleneck of the patch tokens.

    x_patches + up(dw(down(x_patches)))

It stands in front of a block's attention (12 adapters in a ViT-B) and in the 24-adapter form also in front of its MLP.
Prefix tokens pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DmgalError
from .reference_state import load_reference_state
from .video_tokens import check_video_tokens, patch_tokens, patch_volume


@dataclass(frozen=True)
class STAdapterShape:
    """Sizes of one ST-Adapter.

    Args:
        width: channels ``C`` of the tokens.
        bottleneck: channels ``a`` of the convolution; the paper has 384 at width 768.
        num_prefix_tokens: tokens before the patches.
        grid: rows and columns of patches.
        kernel: frames, rows and columns of the convolution, each odd.

    Raises:
        DmgalError: the kernel is not three odd numbers.
    """

    width: int
    bottleneck: int
    num_prefix_tokens: int
    grid: tuple[int, int]
    kernel: tuple[int, int, int] = (3, 1, 1)

    def __post_init__(self) -> None:
        if len(self.kernel) != 3 or any(size < 1 or size % 2 == 0 for size in self.kernel):
            raise DmgalError(
                "ST-Adapter cannot take this kernel.",
                received=f"kernel={self.kernel}",
                expected="three odd numbers: frames, rows and columns",
                remedy="the paper's kernels are (3, 1, 1) and (3, 3, 3)",
            )


class STAdapter(nn.Module):
    """The convolution starts at zero and ``up`` without a bias, so nothing changes at the start.

    Raises:
        DmgalError: tokens do not fit the shape.
    """

    def __init__(self, shape: STAdapterShape) -> None:
        super().__init__()
        self.shape = shape
        bottleneck, kernel = shape.bottleneck, shape.kernel
        self.down = nn.Linear(shape.width, bottleneck)
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.convolution = nn.Conv3d(bottleneck, bottleneck, kernel, padding=padding, groups=bottleneck)
        self.up = nn.Linear(bottleneck, shape.width)
        for zero in (self.down.bias, self.convolution.weight, self.convolution.bias, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(V, T, N, C)`` to the same shape."""
        prefix, patches = tokens.tensor_split([self.shape.num_prefix_tokens], dim=2)
        return torch.cat([prefix, patches + self._patch_delta(tokens)], dim=2)

    def delta(self, tokens: Tensor) -> Tensor:
        """What is added to tokens ``(V, T, N, C)``, in the same shape; zero for prefix tokens."""
        return F.pad(self._patch_delta(tokens), (0, 0, self.shape.num_prefix_tokens, 0))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the authors' released code."""
        load_reference_state(self, state, {"fc1": "down", "conv": "convolution", "fc2": "up"})

    def _patch_delta(self, tokens: Tensor) -> Tensor:
        """``(V, T, P, C)`` from ``(V, T, N, C)``."""
        rows, columns = self.shape.grid
        check_video_tokens(tokens, self.shape.width, self.shape.num_prefix_tokens + rows * columns)
        hidden = self.down(tokens)  # all tokens: leaving the prefix out first would copy the others
        return self.up(self._convolve(hidden))

    def _convolve(self, hidden: Tensor) -> Tensor:
        """Hidden tokens ``(V, T, N, a)`` to convolved patches ``(V, T, P, a)``."""
        if self.shape.kernel[1:] != (1, 1):
            return patch_tokens(self.convolution(patch_volume(hidden, self.shape.num_prefix_tokens, self.shape.grid)))
        # A kernel over time alone needs no grid, and two dimensions are several times faster than three on CPUs.
        weight, padding = self.convolution.weight.flatten(3), (self.shape.kernel[0] // 2, 0)  # (a, 1, k, 1)
        maps = hidden.permute(0, 3, 1, 2)  # (V, a, T, N)
        mixed = F.conv2d(maps, weight, self.convolution.bias, padding=padding, groups=self.shape.bottleneck)
        return mixed.permute(0, 2, 3, 1)[:, :, self.shape.num_prefix_tokens :]
