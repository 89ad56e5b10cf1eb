"""open_clip's ``VisionTransformer``, alone or as the visual tower of a whole CLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..spec import BackboneSpec
from . import OPENAI_MEAN, OPENAI_STD


def describe(model: nn.Module) -> BackboneSpec | None:
    """The spec of a model of this library, None for every other."""
    tower = _tower(model)
    if not all(hasattr(tower, part) for part in ("transformer", "ln_pre", "ln_post", "_embeds", "_pool")):
        return None
    if tower.attn_pool is not None:  # CoCa's pooling has no patch tokens behind it
        return None
    prefix = "" if tower is model else "visual."
    preprocessing = getattr(tower, "preprocess_cfg", {})
    return BackboneSpec(
        library="open_clip",
        tower=prefix.rstrip("."),
        blocks=f"{prefix}transformer.resblocks",
        num_blocks=len(tower.transformer.resblocks),
        width=tower.transformer.width,
        batch_first=tower.transformer.batch_first,
        num_prefix_tokens=1,
        grid=tuple(tower.grid_size),
        image_size=tuple(tower.image_size),
        mean=tuple(preprocessing.get("mean") or OPENAI_MEAN),
        std=tuple(preprocessing.get("std") or OPENAI_STD),
        pools_prefix=tower.pool_type == "tok",
        patch_embedding=f"{prefix}conv1",
        stem=_stem,
        run_block=_run_block,
        pool=_pool,
        norm=_norm,
        project=_project,
    )


def _tower(model: nn.Module) -> Any:
    return getattr(model, "visual", model)


def _stem(model: nn.Module, images: Tensor) -> Tensor:
    return _tower(model)._embeds(images)


def _run_block(block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


def _pool(model: nn.Module, tokens: Tensor) -> Tensor:
    return _tower(model)._pool(tokens)[0]


def _norm(model: nn.Module, tokens: Tensor) -> Tensor:
    return _tower(model).ln_post(tokens)


def _project(model: nn.Module, features: Tensor) -> Tensor:
    projection = _tower(model).proj
    return features if projection is None else features @ projection
