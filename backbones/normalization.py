"""Channel means and standard deviations of backbones' training images, for pixel values in [0, 1]."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

Channels = tuple[float, float, float]


class Normalization(NamedTuple):
    """Parameters of ``(image - mean) / std``."""

    mean: Channels
    std: Channels


OPENAI = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return the ``preprocessor_config.json`` that ``load_backbone`` stored on a transformers model, or ``{}``."""
    return getattr(model, "dmgal_preprocessing", None) or {}


def told_or(default: Normalization, mean: Any, std: Any) -> Normalization:
    """Return the mean and std of a configuration, falling back to ``default`` for missing values."""
    return Normalization(tuple(mean or default.mean), tuple(std or default.std))
