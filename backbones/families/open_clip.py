"""open_clip's visual towers, alone or inside a whole CLIP: its own ``VisionTransformer``, or one of timm's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..normalization import OPENAI, told_or
from ..spec import BackboneSpec, BlockParts
from . import timm_vit


def describe(model: nn.Module) -> BackboneSpec | None:
    """The spec of a model of this library, None for every other."""
    if not type(model).__module__.startswith("open_clip."):
        return None
    tower = getattr(model, "visual", model)
    spec = _describe_around_timm(tower) if hasattr(tower, "trunk") else _describe_tower(tower)
    return spec.inside("visual") if spec and tower is not model else spec


def _describe_around_timm(tower: Any) -> BackboneSpec | None:
    spec = timm_vit.describe(tower.trunk)
    if spec is None or hasattr(tower.head, "pool"):  # a pooling of maps, for convolutional networks
        return None
    mean, std = _normalization(tower)
    inside = spec.inside("trunk")
    return replace(inside, library="open_clip", mean=mean, std=std, project=partial(_project_twice, inside.project))


def _describe_tower(tower: Any) -> BackboneSpec | None:
    if not all(hasattr(tower, part) for part in ("transformer", "ln_pre", "ln_post", "_embeds", "_pool")):
        return None
    if tower.attn_pool is not None:  # CoCa's pooling has no patch tokens behind it
        return None
    mean, std = _normalization(tower)
    return BackboneSpec(
        library="open_clip",
        tower="",
        blocks="transformer.resblocks",
        num_blocks=len(tower.transformer.resblocks),
        width=tower.transformer.width,
        batch_first=tower.transformer.batch_first,
        num_prefix_tokens=1,
        grid=tuple(tower.grid_size),
        image_size=tuple(tower.image_size),
        mean=mean,
        std=std,
        pools_prefix=tower.pool_type == "tok",
        patch_embedding="conv1",
        stem=_stem,
        run_block=_run_block,
        pool=_pool,
        norm=_norm,
        project=_project,
        parts=BlockParts("ln_1", "attn", "ln_2", "mlp"),
        attend=_attend,
    )


def _normalization(tower: Any) -> Any:
    told = getattr(tower, "preprocess_cfg", {})
    return told_or(OPENAI, told.get("mean"), told.get("std"))


def _stem(tower: Any, images: Tensor) -> Tensor:
    return tower._embeds(images)


def _run_block(tower: nn.Module, block: Any, tokens: Tensor) -> Tensor:
    """The block itself; in training and under autocast its attention is given tokens that it projects in one product.

    ``nn.MultiheadAttention`` takes the batch second and so projects a transposed view. Where its weights are frozen,
    torch makes of that one small product for each token: on a CPU 2 times as slow as one for all in float32 and 29
    times in bf16, with 8 frames. In evaluation in full precision nothing is done, so that the bits are open_clip's own.
    """
    device = tokens.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    attention = getattr(block, "attn", None)
    if attention is None or torch.compiler.is_compiling() or not (autocast or block.training):
        return block(tokens)
    handle = attention.register_forward_pre_hook(_tokens_first, prepend=True)
    try:
        return block(tokens)
    finally:
        handle.remove()


def _tokens_first(attention: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The same ``(B, N, C)``, but in memory as ``(N, B, C)``, where queries, keys and values are all of one tensor."""
    if not inputs or any(tensor is not inputs[0] for tensor in inputs) or not getattr(attention, "batch_first", False):
        return None
    tokens = inputs[0].transpose(0, 1).contiguous().transpose(0, 1)
    return (tokens,) * len(inputs)


def _attend(block: Any, tokens: Tensor) -> Tensor:
    if hasattr(block, "attention"):
        return block.attention(tokens)
    return block.attn(tokens)  # the block that open_clip builds for options CLIP did not have


def _pool(tower: Any, tokens: Tensor) -> Tensor:
    return tower._pool(tokens)[0]


def _norm(tower: Any, tokens: Tensor) -> Tensor:
    return tower.ln_post(tokens)


def _project(tower: Any, features: Tensor) -> Tensor:
    return features if tower.proj is None else features @ tower.proj


def _project_twice(first: Any, tower: Any, features: Tensor) -> Tensor:
    """By timm's model itself, then by what open_clip put behind it."""
    return tower.head(first(tower, features))
