"""Description of the parts of a frozen backbone: its blocks, tokens, stem, final layers and normalization of pixels.

The blocks of a vision transformer all have the same tokens. Those of a hierarchical or convolutional backbone have a
`BlockShape` each, before and after the block.

The rest of dmgal uses the spec and never depends on a library. ``families`` finds the spec of a model. Channel means
and standard deviations are for pixel values in [0, 1]. Rotary positions have no random jitter. The functions at the end
serve the modules of several libraries.
"""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor, nn

from ..errors import DmgalError
from .shape import BlockShape, BlockSides


@dataclass(frozen=True)
class BlockParts:
    """Names of modules relative to their block, in the order ``x + attention(norm(x))``, ``x + mlp(norm(x))``.

    A name is None if no module does exactly this. Examples are an MLP made of two linear layers of the block itself, or
    a norm after the layer that it should precede.
    """

    attention_norm: str | None = None
    attention: str | None = None
    mlp_norm: str | None = None
    mlp: str | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """The parts of a backbone. Paths are dotted module names from the model's root.

    Width, grid and prefix tokens of a backbone in stages are those after its last block.

    ``stem``, ``run_block`` and the tail (``pool``, ``norm``, ``project``) take the model first:

    - ``stem``: images ``(B, 3, h, w)`` to the input tokens of the first block, ``(B, N, C)``;
    - ``run_block``: the model, a block and tokens in the block's own layout, to tokens in that layout;
    - ``pool``: tokens to the backbone's own pooled and normed feature ``(B, C)``;
    - ``norm``: the final norm, on tokens, for pooling patches;
    - ``project``: a feature ``(B, C)`` to ``(B, D)``; the identity if the backbone does not project.
    """

    library: str
    blocks: str
    num_blocks: int
    width: int
    batch_first: bool
    """True if the input of blocks is ``(B, N, C)``, False if it is ``(N, B, C)``."""
    num_prefix_tokens: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pools_prefix: bool
    """True if the backbone's own pooling uses only the first token."""
    patch_embedding: str
    """The layer that embeds patches. Its weights distinguish backbones of the same shape."""
    stem: Callable[[nn.Module, Tensor], Tensor]
    run_block: Callable[[nn.Module, nn.Module, Tensor], Tensor]
    pool: Callable[[nn.Module, Tensor], Tensor]
    norm: Callable[[nn.Module, Tensor], Tensor]
    project: Callable[[nn.Module, Tensor], Tensor]
    parts: BlockParts | None = None
    """The parts of every block, or None if blocks have another structure."""
    attend: Callable[[nn.Module, Tensor], Tensor] | None = None
    """Maps a block and any number of normed tokens, in its own layout, to the attention's output. None if unknown."""
    rotary: bool = False
    """True if the attention needs positions, so that it accepts only the tokens of a frame."""
    tower: str = ""
    """Path of the model that the other paths started from, before `inside`."""
    block_keys: tuple[str, ...] | None = None
    """Names of the blocks in their stack, or None if the names are their indices."""
    sides: tuple[BlockSides, ...] = ()
    """The shapes of each block of a backbone in stages or of clips, or empty if all blocks have a frame's tokens."""
    clip_frames: int | None = None
    """Number of frames ``T`` of a clip that a backbone of videos takes. None: it takes images."""
    tubelet: int = 1
    """Number of frames in a step of a backbone of videos."""

    def __post_init__(self) -> None:
        _ = self.entry, self.exit  # cached here, because torch.compile cannot trace the lock of a cached property

    @cached_property
    def entry(self) -> BlockShape:
        """The input of the first block."""
        return self.sides[0].before if self.sides else self._shape

    @cached_property
    def exit(self) -> BlockShape:
        """The output of the last block."""
        return self.sides[-1].after if self.sides else self._shape

    @cached_property
    def _shape(self) -> BlockShape:
        return BlockShape(self.width, self.num_prefix_tokens, self.grid, "b n c" if self.batch_first else "n b c")

    def of_block(self, index: int) -> BackboneSpec:
        """Return the spec as one block sees it: ``entry`` and ``exit`` are those of the block."""
        return replace(self, sides=(self.sides[index],)) if self.sides else self

    def shape_between(self, index: int) -> BlockShape:
        """Return the shape of the tensor from which block ``index`` continues, or of the last block's output."""
        return self.sides[index - 1].after if self.sides and index else self.entry

    def num_steps(self, num_frames: int) -> int:
        """Return the number of steps in time of a clip: its frames, or fewer for a backbone of videos.

        Raises:
            DmgalError: a backbone of videos takes clips of another number of frames.
        """
        if self.clip_frames not in (None, num_frames):
            raise DmgalError(
                "This backbone of videos takes clips of another length.",
                received=f"clips of {num_frames} frames",
                expected=f"{self.clip_frames} frames ({self.clip_frames // self.tubelet} steps of {self.tubelet})",
                remedy=f"Pass --data.num-frames {self.clip_frames}, or clips of this length.",
            )
        return num_frames // self.tubelet

    def check_image_size(self, size: Sequence[int], positions: bool = False, grid: bool = False) -> None:
        """Raise a DmgalError for images of another size whose positions or grid would be those of ``image_size``.

        Backbones that resize their learned positions accept images of other sizes.

        Args:
            size: height and width of the images, in pixels.
            positions: the caller passes the rotary positions of ``image_size`` to the blocks.
            grid: the caller relies on the grid, and checks the number of tokens itself.
        """
        height, width = size
        if self.sides and (height, width) != tuple(self.image_size):
            call = f"dmgal.backbones.describe_backbone(model, image_size=({height}, {width}))"
            describe = f", or describe the backbone for this size before adapters are added: {call}"
            raise DmgalError(
                "This backbone is described for images of one size.",
                received=f"images of {height} x {width} pixels",
                expected=f"{self.image_size[0]} x {self.image_size[1]} pixels",
                remedy=f"Resize the images{describe if self.clip_frames is None else ''}.",
            )
        rows, columns = self.grid
        patch = self.image_size[0] // rows, self.image_size[1] // columns
        same_count = (height // patch[0]) * (width // patch[1]) == rows * columns
        rotary = positions and self.rotary
        if (height, width) != tuple(self.image_size) and (rotary or (grid and same_count)):
            raise DmgalError(
                "This backbone is described for images of another size.",
                received=f"images of {height} x {width} pixels",
                expected=f"{self.image_size[0]} x {self.image_size[1]} pixels"
                + (", since its rotary positions depend on the size" if rotary else ""),
                remedy="Resize the images, or set the size in the backbone's configuration before it is used.",
            )

    def block_names(self) -> list[str]:
        """Return the dotted names of all blocks, from the model's root."""
        stack = f"{self.blocks}." if self.blocks else ""
        return [f"{stack}{key}" for key in self.block_keys or range(self.num_blocks)]

    def modules_above_blocks(self, model: nn.Module) -> list[nn.Module]:
        """Return the model and all ancestors of the stack of blocks, outermost first."""
        parts = self.blocks.split(".")[: None if self.sides else -1] if self.blocks else []
        return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]

    def fingerprint(self, model: nn.Module) -> list[float] | None:
        """Return four numbers that survive a cast to half precision and differ between trained backbones.

        Return None on the meta device.
        """
        weight = model.get_parameter(f"{self.patch_embedding}.weight")
        if weight.is_meta:
            return None
        quarters = weight.detach().double().flatten(1).chunk(4, dim=1)
        return [round(quarter.square().mean().sqrt().item(), 7) for quarter in quarters]

    def inside(self, path: str) -> BackboneSpec:
        """Return the spec of a model with this spec's model at a dotted path, e.g. of a CLIP with its visual tower."""
        changes: dict[str, Any] = {
            name: partial(_inside, path, getattr(self, name))
            for name in ("stem", "run_block", "pool", "norm", "project")
        }
        for name in ("blocks", "patch_embedding"):
            changes[name] = f"{path}.{getattr(self, name)}".rstrip(".")
        changes["tower"] = f"{path}.{self.tower}" if self.tower else path
        return replace(self, **changes)


def _inside(path: str, call: Callable[..., Tensor], model: nn.Module, *inputs: object) -> Tensor:
    return call(model.get_submodule(path), *inputs)


def base_model(model: nn.Module) -> nn.Module:
    """Return the backbone itself, without PEFT's wrappers if there are any."""
    while callable(unwrap := getattr(model, "get_base_model", None)):
        model = unwrap()
    return model


def without_jitter(positions: nn.Module) -> Any:
    """Return a module of rotary positions in evaluation mode.

    Positions must not change between calls, because a video may be encoded twice, and block by block.
    """
    return copy.copy(positions).eval() if positions.training else positions


def is_hooked(module: nn.Module) -> bool:
    """Return True if a module has hooks, which a replacement would lose."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def require_hub() -> None:
    """Raise an error before a download if the host name of Hugging Face's hub cannot be resolved.

    Without this check, the libraries retry for minutes. In offline mode they read their local cache, and a proxy
    resolves names itself. Both skip the check.

    Raises:
        ConnectionError: the name cannot be resolved.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if not (constants.HF_HUB_OFFLINE or getproxies() or _is_resolvable(host)):
        raise ConnectionError(f"the host name {host} cannot be resolved")


def _is_resolvable(host: str | None) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def unknown_name(library: str, what: str, received: str, known: str, example: str) -> DmgalError:
    """Return the error for a name that a library does not know."""
    return DmgalError(
        f"{library} has no such {what}.",
        received=received,
        expected=f"one of {known}",
        remedy=f"Check the name. A valid one is {example}.",
    )
