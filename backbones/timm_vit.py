"""timm's ``VisionTransformer`` and ``Eva`` with any prefix tokens, pooling and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import DmgalError
from .spec import IMAGENET, BackboneSpec, BlockParts, fill_normalization, require_hub, unknown_name, without_jitter

_PRE_NORM_BLOCKS = ("Block", "EvaBlock")
_ATTRIBUTES = ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm", "forward_head", "num_prefix_tokens", "head")


def load(name: str) -> Any:
    """Load ``MODEL``, ``MODEL.WEIGHTS`` or ``local-dir:FOLDER`` without its classifier."""
    timm = _import_timm()
    if name.startswith("local-dir:"):
        if not Path(name.removeprefix("local-dir:"), "model.safetensors").is_file():
            raise FileNotFoundError("model.safetensors beside config.json; other formats may run code when loaded")
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
            remedy="Run: pip install dmgal[timm]",
        ) from error
    return timm


def describe(model: nn.Module) -> BackboneSpec | None:
    """Return the spec of a model of this library, or None for any other model."""
    if not type(model).__module__.startswith("timm.") or not all(hasattr(model, part) for part in _ATTRIBUTES):
        return None
    return _describe(model)


def _describe(model: Any) -> BackboneSpec:
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
        grid=tuple(model.patch_embed.grid_size),
        image_size=tuple(model.patch_embed.img_size),
        mean=mean,
        std=std,
        pools_prefix=model.global_pool == "token" and not hasattr(model, "head_dist"),
        patch_embedding="patch_embed.proj",
        stem=_stem,
        run_block=_run_rotary_block if rotary else _run_block,
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


def _run_block(model: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


def _run_rotary_block(model: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    has_fixed_grid = bool(getattr(model.rope, "feat_shape", None))
    rope = without_jitter(model.rope).get_embed(None if has_fixed_grid else model.patch_embed.grid_size)
    if model.rope_mixed:  # each block has its own positions
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
