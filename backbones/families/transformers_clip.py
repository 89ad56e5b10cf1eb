"""transformers' CLIP: ``CLIPVisionModel``, ``CLIPVisionModelWithProjection`` and the vision tower of ``CLIPModel``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..spec import BackboneSpec
from . import OPENAI_MEAN, OPENAI_STD


def describe(model: nn.Module) -> BackboneSpec | None:
    """The spec of a model of this library, None for every other."""
    tower = _tower(model)
    if not all(hasattr(tower, part) for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")):
        return None
    prefix = "" if tower is model else "vision_model."
    patches = tower.embeddings.patch_embedding
    size = tower.config.image_size
    grid = (size // patches.kernel_size[0], size // patches.kernel_size[1])
    return BackboneSpec(
        library="transformers",
        tower=prefix.rstrip("."),
        blocks=f"{prefix}encoder.layers",
        num_blocks=len(tower.encoder.layers),
        width=tower.config.hidden_size,
        batch_first=True,
        num_prefix_tokens=1,
        grid=grid,
        image_size=(size, size),
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        pools_prefix=True,
        patch_embedding=f"{prefix}embeddings.patch_embedding",
        stem=_stem,
        run_block=_run_block,
        pool=_pool,
        norm=_norm,
        project=_project,
    )


def _tower(model: nn.Module) -> Any:
    return getattr(model, "vision_model", model)


def _stem(model: nn.Module, images: Tensor) -> Tensor:
    tower = _tower(model)
    return tower.pre_layrnorm(tower.embeddings(images))


def _run_block(block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens, None)  # the second argument is the attention mask


def _pool(model: nn.Module, tokens: Tensor) -> Tensor:
    return _tower(model).post_layernorm(tokens[:, 0])


def _norm(model: nn.Module, tokens: Tensor) -> Tensor:
    return _tower(model).post_layernorm(tokens)


def _project(model: nn.Module, features: Tensor) -> Tensor:
    projection: Any = getattr(model, "visual_projection", None)
    return features if projection is None else projection(features)
