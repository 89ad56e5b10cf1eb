"""timm's ``VisionTransformer``, ``Eva`` and ``NaFlexVit`` with any prefix tokens, pooling and positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import DmgalError
from .preprocessing import IMAGENET, fill_normalization
from .spec import BackboneSpec, BlockParts, require_hub, unknown_name, without_jitter

_PRE_NORM_BLOCKS = ("Block", "EvaBlock")
_ATTRIBUTES = ("norm_pre", "blocks", "norm", "forward_head", "num_prefix_tokens", "head")


def load(name: str) -> Any:
    """Load ``MODEL``, ``MODEL.WEIGHTS`` or ``local-dir:FOLDER`` without its classifier."""
    timm = _import_timm()
    if name.startswith("local-dir:"):
        if not Path(name.removeprefix("local-dir:"), "model.safetensors").is_file():
            raise DmgalError(
                "This folder of timm has no safetensors.",
                received=name.removeprefix("local-dir:"),
                expected="model.safetensors beside config.json, because other formats may run code when loaded",
                remedy="Save the model again by timm's save_for_hf with safe_serialization=True.",
            )
        return timm.create_model(name, pretrained=True, num_classes=0).eval()
    model, _, weights = name.partition(".")
    example = "timm:vit_base_patch16_224.augreg_in21k"
    if not timm.is_model(model):
        raise unknown_name("timm", "model", model, "timm.list_models()", example)
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")]
    if weights and weights not in known:
        raise unknown_name("timm", f"weights of {model}", weights, ", ".join(known) or "none", example)
    if weights:
        require_hub()
    return timm.create_model(name, pretrained=bool(weights), num_classes=0).eval()


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise DmgalError(
            "timm is not installed.",
            received=f"a backbone of timm ({error})",
            expected="the package timm",
            remedy="Run pip install 'dmgal[timm]'.",
        ) from error
    return timm


def describe(model: nn.Module) -> BackboneSpec | None:
    """Return the spec of a model of this library, or None for any other model."""
    if not type(model).__module__.startswith("timm.") or not all(hasattr(model, part) for part in _ATTRIBUTES):
        return None
    if hasattr(model, "patch_embed") and hasattr(model, "_pos_embed"):
        return _describe(model)
    return _describe_naflex(model) if hasattr(model, "embeds") else None


def _describe_naflex(model: Any) -> BackboneSpec | None:
    """Return the spec for images of the size of timm's configuration, or of as many patches as the positions have."""
    embeds, patch = model.embeds, model.embeds.patch_size
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 0, 0))[1:]
    if not all(size):
        size = tuple(side * count for side, count in zip(patch, embeds.pos_embed_grid_size or (0, 0), strict=True))
    if not all(size):
        return None
    grid = embeds.dynamic_feat_size(size)
    rotary = model.rope is not None
    run_block = partial(_run_naflex_block, grid) if rotary else _run_block
    return _spec(model, grid, size, "embeds.proj", _naflex_stem, run_block)


def _describe(model: Any) -> BackboneSpec:
    rotary = getattr(model, "rope", None) is not None
    grid, size = model.patch_embed.grid_size, model.patch_embed.img_size
    return _spec(model, grid, size, "patch_embed.proj", _stem, _run_rotary_block if rotary else _run_block)


def _spec(
    model: Any, grid: Sequence[int], size: Sequence[int], patch_embedding: str, stem: Any, run_block: Any
) -> BackboneSpec:
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = fill_normalization(IMAGENET, config.get("mean"), config.get("std"))
    rotary = getattr(model, "rope", None) is not None
    is_pre_norm = all(type(block).__name__ in _PRE_NORM_BLOCKS for block in model.blocks)
    return BackboneSpec(
        library="timm",
        blocks="blocks",
        num_blocks=len(model.blocks),
        width=model.embed_dim,
        batch_first=True,
        num_prefix_tokens=model.num_prefix_tokens,
        grid=(grid[0], grid[1]),
        image_size=(size[0], size[1]),
        mean=mean,
        std=std,
        pools_prefix=model.global_pool == "token" and not hasattr(model, "head_dist"),
        patch_embedding=patch_embedding,
        stem=stem,
        run_block=run_block,
        pool=_pool,
        norm=_norm,
        project=_project,
        parts=BlockParts("norm1", "attn", "norm2", "mlp") if is_pre_norm else None,
        attend=_attend if is_pre_norm and not rotary else None,
        rotary=rotary,
    )


def _stem(model: Any, images: Tensor) -> Tensor:
    tokens = model._pos_embed(model.patch_embed(images))
    if isinstance(tokens, tuple):  # Eva returns tokens and the positions for its blocks
        tokens = tokens[0]
    elif hasattr(model, "patch_drop"):
        tokens = model.patch_drop(tokens)
    return model.norm_pre(tokens)


def _naflex_stem(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model._forward_embeds(images, None, None, None)["patches"]
    return tokens


def _run_block(model: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


def _run_rotary_block(model: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    has_fixed_grid = bool(getattr(model.rope, "feat_shape", None))
    rope = without_jitter(model.rope).get_embed(None if has_fixed_grid else model.patch_embed.grid_size)
    return _run_rotated(model, block, tokens, rope, model.rope_mixed)


def _run_naflex_block(grid: tuple[int, int], model: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    return _run_rotated(model, block, tokens, without_jitter(model.rope).get_embed(shape=grid), model.rope_is_mixed)


def _run_rotated(model: Any, block: nn.Module, tokens: Tensor, rope: Any, is_mixed: bool) -> Tensor:
    if is_mixed:  # each block has its own positions
        rope = rope[next(index for index, other in enumerate(model.blocks) if other is block)]
    return block(tokens, rope=rope)


def _attend(block: Any, tokens: Tensor) -> Tensor:
    return block.attn(tokens)


def _pool(model: Any, tokens: Tensor) -> Tensor:
    return model.forward_head(model.norm(tokens), pre_logits=True)


def _norm(model: Any, tokens: Tensor) -> Tensor:
    """Apply the norm before or after the pooling. The other one is the identity."""
    return model.fc_norm(model.norm(tokens))


def _project(model: Any, features: Tensor) -> Tensor:
    return model.head(features)
