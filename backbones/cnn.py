"""Feature maps of a convolutional backbone (transformers or timm), with the interface of the encoder.

No layer of it relates videos, so ``encode`` does all the work and ``relate`` has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from .spec import IMAGENET, Normalization, Preprocessing, base_model, fill_normalization
from .state import VideoState


class CnnSpec(NamedTuple):
    """The way a convolutional network turns normalized images ``(B, 3, H, W)`` into maps ``(B, C, h, w)``."""

    maps: Callable[[Any, Tensor], Tensor]
    width: int
    image_size: tuple[int, int]
    normalization: Normalization


def find_cnn(backbone: nn.Module) -> CnnSpec | None:
    """Return the spec of a ResNet, ConvNeXt or similar model of transformers or timm, or None for any other model."""
    inner: Any = base_model(backbone)
    if hasattr(getattr(inner, "config", None), "hidden_sizes"):
        return _describe_transformers(inner)
    if type(inner).__module__.startswith("timm.models.") and not hasattr(inner, "patch_embed"):
        return _describe_timm(inner)
    return None


def _describe_transformers(model: Any) -> CnnSpec:
    preprocessing = Preprocessing(model)
    return CnnSpec(
        maps=lambda backbone, images: backbone(images).last_hidden_state,
        width=model.config.hidden_sizes[-1],
        image_size=preprocessing.image_size((224, 224)),
        normalization=preprocessing.normalization(IMAGENET),
    )


def _describe_timm(model: Any) -> CnnSpec:
    config = model.pretrained_cfg or {}
    _, height, width = config.get("input_size") or (3, 224, 224)
    return CnnSpec(
        maps=lambda backbone, images: backbone.forward_features(images),
        width=model.num_features,
        image_size=(height, width),
        normalization=fill_normalization(IMAGENET, config.get("mean"), config.get("std")),
    )


class MapEncoder(nn.Module):
    """An encoder that wraps a convolutional network.

    Args:
        backbone: e.g. transformers' ``ResNetModel`` or timm's ``resnet50``. Size, mean and standard deviation of its
            images are those that ``load_backbone`` or timm stored on it, else ImageNet's.
        spec: the result of ``find_cnn`` for this backbone.
        pooling: ``"map"`` for maps ``(C, h, w)``, or ``None`` for their mean ``(C,)``.
    """

    has_task_layer = False
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any, spec: CnnSpec, pooling: Literal["map"] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self._maps = spec.maps
        self.image_size = spec.image_size
        self.width = self.feature_width = spec.width
        self.register_buffer("mean", torch.tensor(spec.normalization.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.normalization.std).view(3, 1, 1), persistent=False)

    def encode(self, videos: Tensor) -> VideoState:
        """Return maps ``(V, T, C, h, w)`` or features ``(V, T, C)`` of videos ``(V, T, 3, H, W)``.

        uint8 videos are normalized. Floating-point videos have to be normalized.
        """
        images = rearrange(videos, "v t c h w -> (v t) c h w")
        if images.dtype == torch.uint8:
            dtype = next(self.backbone.parameters()).dtype
            images = ((images / 255 - self.mean) / self.std).to(dtype)
        maps = self._maps(self.backbone, images)
        features = maps if self.pooling == "map" else maps.mean((2, 3))
        return VideoState(features=rearrange(features, "(v t) ... -> v t ...", t=videos.shape[1]))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Return the features of support and query, which no layer relates."""
        return support["features"], query["features"]
