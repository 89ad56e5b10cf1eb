"""NaFlex backbones, which cut images of any size into a sequence of patches: SigLIP 2, and calls that pass patches.

`FrameEncoder` passes images of one size, from which the patches are cut here. Adapters see a grid of patches, so that
a call of the backbone itself may pass patches only if all images have this grid and no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..errors import DmgalError
from .spec import BackboneSpec

_PATCH_COORDINATES = ("patch_coord", "patch_valid", "patches")


def cut_patches(images: Tensor, patch: int) -> Tensor:
    """Return the patches ``(B, N, patch * patch * 3)`` of images ``(B, 3, h, w)``, row by row, channels innermost.

    Raises:
        DmgalError: the sides of the images are no multiples of the patch.
    """
    if any(side % patch for side in images.shape[-2:]):
        height, width = images.shape[-2:]
        raise DmgalError(
            "The images cannot be cut into patches.",
            received=f"images of {height} x {width} pixels",
            expected=f"sides that are multiples of {patch}",
            remedy=f"Resize the images, e.g. to {max(1, height // patch) * patch} x {max(1, width // patch) * patch}.",
        )
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def embed_images(tower: Any, images: Tensor) -> Tensor:
    """Return the tokens ``(B, N, C)`` that enter the blocks of a SigLIP 2, of images ``(B, 3, h, w)`` of one size."""
    embeddings, patch = tower.embeddings, tower.config.patch_size
    patches = cut_patches(images, patch)
    shape = torch.tensor([[images.shape[2] // patch, images.shape[3] // patch]])
    side = embeddings.position_embedding_size
    positions = embeddings.position_embedding.weight.reshape(side, side, -1)
    tokens: Tensor = embeddings.patch_embedding(patches.to(embeddings.patch_embedding.weight.dtype))
    return tokens + embeddings.resize_positional_embeddings(positions, shape, patches.shape[1])


def check_patches(spec: BackboneSpec, args: Sequence[Any], kwargs: Mapping[str, object]) -> None:
    """Raise a DmgalError if the arguments of a call are patches of images that do not all have the grid of the spec.

    These are SigLIP 2's ``spatial_shapes`` and ``pixel_attention_mask``, and timm's batches of patches.
    """
    batch = args[0] if args and isinstance(args[0], Mapping) else kwargs
    if any(name in batch for name in _PATCH_COORDINATES):
        raise _other_patches(spec, "patches with coordinates", "Pass the images.")
    names = dict(zip(("pixel_values", "pixel_attention_mask", "spatial_shapes"), args, strict=False)) | dict(kwargs)
    shapes = names.get("spatial_shapes")
    if shapes is None:
        return
    grids = sorted({tuple(shape) for shape in shapes.tolist()})
    mask = names.get("pixel_attention_mask")
    if grids != [tuple(spec.grid)] or (mask is not None and not bool(mask.all())):
        received = ", ".join(f"{rows} x {columns}" for rows, columns in grids[:5])
        raise _other_patches(spec, f"images of {received} patches, in a batch of padded patches", "Resize the images.")


def _other_patches(spec: BackboneSpec, received: str, remedy: str) -> DmgalError:
    rows, columns = spec.grid
    return DmgalError(
        "A backbone with adapters takes images of one size, because adapters see a grid of patches.",
        received=received,
        expected=f"images of {spec.image_size[0]} x {spec.image_size[1]} pixels ({rows} x {columns} patches)",
        remedy=f"{remedy} FrameEncoder cuts images into patches itself.",
    )
