"""Means and standard deviations that backbones were trained with, per channel of an image in [0, 1]."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

Channels = tuple[float, float, float]


class Normalization(NamedTuple):
    """``(image - mean) / std``."""

    mean: Channels
    std: Channels


OPENAI = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """What ``load_backbone`` read from the ``preprocessor_config.json`` beside a transformers model, else nothing."""
    return getattr(model, "dmgal_preprocessing", None) or {}


def told_or(default: Normalization, mean: Any, std: Any) -> Normalization:
    """A configuration's own values, where it says any."""
    return Normalization(tuple(mean or default.mean), tuple(std or default.std))
