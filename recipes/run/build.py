"""Construction of a recipe's parts: catalog, recognizer and test clips."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dmgal.adapters import backbone_of, fits, is_added, load_adapter, pretrained
from dmgal.backbones import FrameEncoder, StreamEncoder, load_backbone, quantize, use_memory_efficient_gelu
from dmgal.backbones.quantized import num_parameters
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import HEADS
from dmgal.episodes.recognizer import Head
from dmgal.errors import FROM_OUTSIDE, DmgalError
from dmgal.recipes.run.adapter import adapted, check_adapter_files, check_tensors, construct, refuse_unknown
from dmgal.recipes.run.config import Recipe
from dmgal.videos import VideoCatalog

PRIOR = (0.1, 0.1, 0.2, 0.6)
"""Weights of the parts of `LateFusion` for a frozen backbone and the same with its motion adapter."""
PRIOR_BESIDE = (0.2, 0.3, 0.3, 0.2)
"""The same for a frozen backbone and a smaller one with a motion adapter."""


def build_recognizer(
    recipe: Recipe, *, backbone: nn.Module | None = None, head: nn.Module | None = None, adapter: Path | None = None
) -> FewShotRecognizer:
    """Return the recognizer of a recipe. Only trained parameters require gradients.

    Args:
        backbone, head: replace those of the recipe.
        adapter: folder of a trained adapter to load. None: inject a new adapter if the recipe has one.
    """
    backbone = load_backbone(recipe.backbone.name) if backbone is None else backbone
    backbone.requires_grad_(recipe.backbone.trainable)
    if recipe.backbone.quantize is not None:
        backbone = quantize(backbone, recipe.backbone.quantize)
    if recipe.adapter is not None:
        backbone = adapted(backbone, recipe, adapter)
    own = _encoder(backbone, recipe)
    encoder: FrameEncoder | StreamEncoder = own if recipe.backbone.expert is None else _with_expert(own, recipe)
    if head is None:
        known: dict[str, object] = {
            "channels": encoder.feature_width,
            "num_frames": _num_steps(encoder, recipe.data.num_frames),
        }
        if isinstance(encoder, StreamEncoder):
            is_shared = encoder.streams[0] is encoder.streams[1]
            known |= {"widths": encoder.widths, "prior": PRIOR if is_shared else PRIOR_BESIDE}
        head = build_head(recipe.head, **known)
    return FewShotRecognizer(encoder, cast(Head, head))


def _encoder(backbone: nn.Module, recipe: Recipe) -> FrameEncoder:
    use_memory_efficient_gelu(backbone)
    return FrameEncoder(backbone, recipe.backbone.pooling, checkpoint_blocks=recipe.backbone.checkpoint_blocks)


def _num_steps(encoder: object, num_frames: int) -> int:
    return encoder.spec.num_steps(num_frames) if isinstance(encoder, FrameEncoder) else num_frames


def _with_expert(encoder: FrameEncoder, recipe: Recipe) -> StreamEncoder:
    """Return the encoder beside that of a motion expert. Both share the backbone if it is the same."""
    folder = pretrained(recipe.backbone.expert or "")
    check_adapter_files(Path(folder))
    is_shared = fits(folder, encoder.backbone)
    backbone = encoder.backbone if is_shared else load_backbone(backbone_of(folder) or "")
    arguments = {"backbone": backbone, "folder": folder}
    expert = construct(f"motion expert of {folder}", load_adapter, arguments, Exception).requires_grad_(False)
    check_tensors(expert, Path(folder))
    if is_shared:
        return StreamEncoder([_encoder(expert, recipe)] * 2, adapted=[False, True])
    use_memory_efficient_gelu(expert)
    return StreamEncoder([encoder, FrameEncoder(expert)])


def with_base_classes(recipe: Recipe, catalog: VideoCatalog) -> Recipe:
    """Return the recipe with ``head.num_base_classes`` filled in if the head has it and the recipe does not."""
    num_base_classes = (catalog.class_splits or ()).count("train")
    wanted = "num_base_classes" in inspect.signature(_head_class(recipe.head.get("name"))).parameters
    if not wanted or not num_base_classes:
        return recipe
    return replace(recipe, head={"num_base_classes": num_base_classes, **recipe.head})


def build_head(options: Mapping[str, Any], **known: object) -> nn.Module:
    """Build a head from its name in ``dmgal.episodes.heads.HEADS`` and its arguments.

    Values in ``known`` fill in the parameters that the class has.
    """
    options = dict(options)
    name = options.pop("name", None)
    cls = _head_class(name)
    parameters = inspect.signature(cls).parameters
    refuse_unknown("head", name, options, parameters)
    arguments = {key: build_head(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return construct(f"head {name}", cls, {**{k: v for k, v in known.items() if k in parameters}, **arguments})


def _head_class(name: object) -> type[nn.Module]:
    if not isinstance(name, str) or name not in HEADS:
        raise DmgalError(
            "This head is unknown.",
            received=repr(name),
            expected=f"one of {', '.join(HEADS)}",
            remedy=f"Correct head.name. {FROM_OUTSIDE}",
        )
    return HEADS[name]


def count_parameters(module: nn.Module, trained_only: bool = False) -> int:
    """Return the number of elements in a module's parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)


def visual_tower_parameters(recognizer: FewShotRecognizer) -> int:
    """Return the number of backbone parameters, without adapters."""
    backbone = recognizer.encoder.backbone
    if (count := num_parameters(backbone)) is not None:
        return count
    return sum(p.numel() for name, p in backbone.named_parameters() if not is_added(name))


def freeze_batch_norm(recognizer: nn.Module) -> None:
    """Make batch norms use their stored statistics. Call it after every ``train()``."""
    for module in recognizer.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.eval()


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of the weights. Half precisions keep their weights in float32."""
    return torch.float64 if precision == "float64" else torch.float32
