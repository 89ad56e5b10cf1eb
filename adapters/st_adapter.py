"""ST-Adapter (arXiv 2206.13559): depth-wise convolution over space and time in a bottleneck of the patch tokens.

    x_patches + up(dw(down(x_patches)))

It acts before a block's attention (12 adapters in a ViT-B), in the 24-adapter form also before its MLP. Prefix tokens
pass unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import DmgalError
from .reference_state import load_reference_state
from .video_tokens import check_video_tokens, patch_tokens, patch_volume


@dataclass(frozen=True)
class STAdapterShape:
    """Sizes of one ST-Adapter.

    Args:
        width: channels ``C`` of the tokens.
        bottleneck: channels ``a`` of the convolution, 384 at width 768 in the paper.
        num_prefix_tokens: tokens before the patches.
        grid: rows and columns of patches.
        kernel: odd sizes of the convolution over frames, rows and columns.

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
                "ST-Adapter does not accept this kernel.",
                received=f"kernel={self.kernel}",
                expected="three odd numbers: frames, rows and columns",
                remedy="Use one of the paper's kernels, (3, 1, 1) or (3, 3, 3), or another odd one.",
            )


class STAdapter(nn.Module):
    """ST-Adapter at one position. The convolution and the bias of ``up`` start at zero, so it starts as the identity.

    Raises:
        DmgalError: the tokens do not fit the shape.
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
        """Map tokens ``(V, T, N, C)`` to the same shape."""
        prefix, patches = tokens.tensor_split([self.shape.num_prefix_tokens], dim=2)
        return torch.cat([prefix, patches + self._patch_delta(tokens)], dim=2)

    def delta(self, tokens: Tensor) -> Tensor:
        """Return the change of tokens ``(V, T, N, C)``, in the same shape and zero for prefix tokens."""
        return F.pad(self._patch_delta(tokens), (0, 0, self.shape.num_prefix_tokens, 0))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the authors' released code."""
        load_reference_state(self, state, {"fc1": "down", "conv": "convolution", "fc2": "up"})

    def _patch_delta(self, tokens: Tensor) -> Tensor:
        """Return the change of the patches, ``(V, T, P, C)``, of tokens ``(V, T, N, C)``."""
        rows, columns = self.shape.grid
        check_video_tokens(tokens, self.shape.width, self.shape.num_prefix_tokens + rows * columns)
        hidden = self.down(tokens)  # of all tokens, because slicing off the prefix first would copy the others
        return self.up(self._convolve(hidden))

    def _convolve(self, hidden: Tensor) -> Tensor:
        """Convolve the patches of hidden tokens ``(V, T, N, a)``, giving ``(V, T, P, a)``."""
        if self.shape.kernel[1:] != (1, 1):
            return patch_tokens(self.convolution(patch_volume(hidden, self.shape.num_prefix_tokens, self.shape.grid)))
        # A kernel over time alone needs no grid. On CPUs, conv2d is several times faster than conv3d.
        weight, padding = self.convolution.weight.flatten(3), (self.shape.kernel[0] // 2, 0)  # (a, 1, k, 1)
        maps = rearrange(hidden, "v t n a -> v a t n")
        convolved = F.conv2d(maps, weight, self.convolution.bias, padding=padding, groups=self.shape.bottleneck)
        return rearrange(convolved, "v a t n -> v t n a")[:, :, self.shape.num_prefix_tokens :]
