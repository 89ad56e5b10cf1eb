"""ST-Adapter (Pan et al., NeurIPS 2022, arXiv 2206.13559): convolution over space and time in a bottleneck.

    patches = patches + up(dw(down(patches)))

``dw`` is a depth-wise 3-D convolution, by default over 3 frames. Prefix tokens pass unchanged. One adapter acts before
the attention of each block (12 in a ViT-B). The 24-adapter form has a second one before the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.spec import BackboneSpec
from ..backbones.state import Layout
from ..errors import DmgalError
from .base import BlockAdapterConfig
from .common import check_video_tokens, load_reference_state, patch_tokens, patch_volume
from .layer import AdapterLayer, own_module
from .tuner import BlockTuner


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


Places = Literal["attention", "attention+mlp"]


@dataclass
class STAdapterConfig(BlockAdapterConfig):
    """Config of ST-Adapter (Pan et al., NeurIPS 2022).

    Args:
        blocks: indices of the blocks with an adapter, negative ones counting from the end. None: all blocks.
        bottleneck: width of the adapter. None: half of the block's width.
        kernel: odd sizes of the convolution over frames, rows and columns.
        places: before the attention (12 adapters in a ViT-B), or before attention and MLP (24).
    """

    blocks: list[int] | None = None
    bottleneck: int | None = None
    kernel: tuple[int, int, int] = (3, 1, 1)
    places: Places = "attention"

    kind: ClassVar[str] = "ST_ADAPTER"
    title: ClassVar[str] = "ST-Adapter (Pan et al., NeurIPS 2022)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)
        self.check_choice("places", ("attention", "attention+mlp"))
        if not isinstance(self.kernel, (list, tuple)) or [type(size) for size in self.kernel] != [int, int, int]:
            raise self.wrong("kernel", "three odd numbers: frames, rows and columns")

    def complete(self, spec: BackboneSpec) -> None:
        if self.places == "attention+mlp" and (spec.parts is None or spec.parts.mlp_norm is None):
            raise self.unsupported_backbone(
                "the norm before the MLP of its blocks is not known", "Use places='attention', the 12-adapter form."
            )
        self.blocks = self.block_indices("blocks", spec.num_blocks)
        if not spec.sides:
            self.bottleneck = self.bottleneck or max(1, spec.width // 2)
        frames, rows, columns = self.kernel
        self.kernel = (frames, rows, columns)  # JSON turns the tuple into a list

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        assert self.blocks is not None
        if block not in self.blocks:
            return None
        entry = spec.of_block(block).entry
        bottleneck = self.bottleneck or max(1, entry.width // 2)
        shape = STAdapterShape(entry.width, bottleneck, entry.num_prefix_tokens, entry.grid, self.kernel)
        return _STAdapters(shape, self.places)


class _STAdapters(nn.Module):
    """The ST-Adapters of one block, before its attention and before its MLP."""

    def __init__(self, shape: STAdapterShape, places: Places) -> None:
        super().__init__()
        self.first = STAdapter(shape)
        self.second = STAdapter(shape) if places == "attention+mlp" else None


class STAdapterLayer(AdapterLayer):
    """ST-Adapters of one block.

    The block's residual branch bypasses what the second adapter adds before the MLP. The layer therefore adds it again
    after the block.
    """

    child = "spatiotemporal"
    prefix = "spatiotemporal_"

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        self._pending_deltas: list[Tensor] = []
        super().__init__(block, layout, spec)

    def attach(self, block: nn.Module) -> Iterator[RemovableHandle]:
        if self.spec.parts is not None and self.spec.parts.mlp_norm is not None:
            mlp_norm = own_module(block.get_submodule(self.spec.parts.mlp_norm))
            yield self.before(mlp_norm, self._before_mlp, _has_second)

    def enter_block(self, tokens: Tensor) -> Tensor:
        self._pending_deltas.clear()  # a failed or partly recomputed call may have left some
        return self.through(tokens, _before_attention, shape=self.spec.entry)

    def leave_block(self, tokens: Tensor) -> Tensor:
        while self._pending_deltas:
            delta = self._pending_deltas.pop()
            tokens = tokens + self.spec.exit.native(delta).to(tokens.dtype)
        return tokens

    def _before_mlp(self, adapters: _STAdapters, tokens: Tensor) -> Tensor:
        assert adapters.second is not None
        delta = adapters.second.delta(tokens)
        self._pending_deltas.append(rearrange(self.among_all(delta), "v t n c -> (v t) n c"))
        return tokens + delta


class STAdapterModel(BlockTuner):
    """The tuner of ``STAdapterConfig``."""

    tuner_layer_cls = STAdapterLayer


def _before_attention(adapters: _STAdapters, tokens: Tensor) -> Tensor:
    return adapters.first(tokens)


def _has_second(adapters: _STAdapters) -> bool:
    return adapters.second is not None
