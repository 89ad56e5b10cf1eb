"""Backbone family around a hand-written MLP-Mixer (Tolstikhin et al., NeurIPS 2021, arXiv 2105.01601).

``mixer:tiny`` has random weights, and ``mixer:FILE.safetensors`` those of a file, whose shapes give the sizes. A Mixer
has no attention and no class token: each block mixes patches, then channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dmgal.backbones import FAMILIES, BackboneSpec, BlockParts, Family
from dmgal.errors import DmgalError

PATCH, GRID = 8, 6
"""Side of a patch in pixels, and of the grid in patches."""


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Return an MLP of the last dimension."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Block(nn.Module):
    """A Mixer block on tokens ``(B, N, C)``."""

    def __init__(self, width: int, num_patches: int = GRID * GRID) -> None:
        super().__init__()
        self.norm1, self.patches = nn.LayerNorm(width), mlp(num_patches, 2 * num_patches)
        self.norm2, self.channels = nn.LayerNorm(width), mlp(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.patches(self.norm1(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.channels(self.norm2(tokens))


class Mixer(nn.Module):
    """An MLP-Mixer for images of 48 x 48 pixels, ``(B, 3, 48, 48)`` to ``(B, C)``."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, width, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens ``(B, N, C)`` of images."""
        return self.embedding(images).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).mean(dim=1)


def describe(model: nn.Module) -> BackboneSpec | None:
    """Return the parts of a Mixer, or None for any other model."""
    if not isinstance(model, Mixer):
        return None
    return BackboneSpec(
        library="mixer",
        blocks="blocks",
        num_blocks=len(model.blocks),
        width=model.norm.normalized_shape[0],
        batch_first=True,
        num_prefix_tokens=0,
        grid=(GRID, GRID),
        image_size=(GRID * PATCH, GRID * PATCH),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pools_prefix=False,
        patch_embedding="embedding",
        parts=BlockParts(mlp_norm="norm2", mlp="channels"),
        stem=lambda model, images: model.embed(images),
        run_block=lambda model, block, tokens: block(tokens),
        pool=lambda model, tokens: model.norm(tokens).mean(dim=1),
        norm=lambda model, tokens: model.norm(tokens),
        project=lambda model, features: features,
    )


def load(name: str) -> Mixer:
    """Return a Mixer in evaluation mode: ``tiny``, or the path of a safetensors file."""
    torch.manual_seed(0)
    if name == "tiny":
        return Mixer().eval()
    weights = load_file(name)
    model = Mixer(*_sizes(weights, Path(name)))
    model.load_state_dict(weights)
    return model.eval()


def _sizes(weights: Mapping[str, Tensor], path: Path) -> tuple[int, int]:
    """Return width and depth."""
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if "norm.weight" not in weights or not depth:
        raise DmgalError(
            "This file has no Mixer.",
            received=f"{path} with {', '.join(sorted(weights)[:3])}",
            expected="the state_dict of a Mixer",
            remedy="Save it by safetensors.torch.save_file(model.state_dict(), path).",
        )
    return len(weights["norm.weight"]), depth


FAMILIES["mixer"] = Family(describe, load, ("tiny", "FILE.safetensors"))
