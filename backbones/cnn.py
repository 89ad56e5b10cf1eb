"""Feature maps of a convolutional backbone (transformers or timm), with the encoder's contract.

Nothing in it relates videos, so everything is on the videos' side of the task boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .normalization import IMAGENET, Normalization, preprocessing, told_or
from .spec import base_model
from .video_state import VideoState


class CnnSpec(NamedTuple):
    """How a convolutional network gives maps ``(B, C, h, w)`` of normalized images ``(B, 3, H, W)``."""

    maps: Callable[[Any, Tensor], Tensor]
    width: int
    image_size: tuple[int, int]
    normalization: Normalization


def find_cnn(backbone: nn.Module) -> CnnSpec | None:
    """The spec of a ResNet, ConvNeXt or the like of transformers or timm; None for any other model."""
    inner: Any = base_model(backbone)
    if hasattr(getattr(inner, "config", None), "hidden_sizes"):
        return _transformers(inner)
    if type(inner).__module__.startswith("timm.models.") and not hasattr(inner, "patch_embed"):
        return _timm(inner)
    return None


def _transformers(model: Any) -> CnnSpec:
    told = preprocessing(model)
    edge = told.get("size", {}).get("shortest_edge", 224)
    return CnnSpec(
        maps=lambda backbone, images: backbone(images).last_hidden_state,
        width=model.config.hidden_sizes[-1],
        image_size=(edge, edge),
        normalization=told_or(IMAGENET, told.get("image_mean"), told.get("image_std")),
    )


def _timm(model: Any) -> CnnSpec:
    told = model.pretrained_cfg or {}
    _, height, width = told.get("input_size") or (3, 224, 224)
    return CnnSpec(
        maps=lambda backbone, images: backbone.forward_features(images),
        width=model.num_features,
        image_size=(height, width),
        normalization=told_or(IMAGENET, told.get("mean"), told.get("std")),
    )


class MapEncoder(nn.Module):
    """Wraps a convolutional network whose spec ``find_cnn`` finds.

    Args:
        backbone: e.g. transformers' ``ResNetModel`` or timm's ``resnet50``; size, mean and standard deviation of its
            images are those that ``load_backbone`` or timm left on it, else ImageNet's.
        spec: what ``find_cnn`` says of it.
        pooling: ``"map"`` for whole maps ``(C, h, w)``; ``None`` for their mean ``(C,)``.
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
        """Maps ``(V, T, C, h, w)`` or features ``(V, T, C)`` of videos ``(V, T, 3, H, W)``; uint8 is normalized."""
        images = videos.flatten(0, 1)  # (V*T, 3, H, W)
        if images.dtype == torch.uint8:
            dtype = next(self.backbone.parameters()).dtype
            images = ((images / 255 - self.mean) / self.std).to(dtype)
        maps = self._maps(self.backbone, images)  # (V*T, C, h, w)
        features = maps if self.pooling == "map" else maps.mean((2, 3))
        return VideoState(features=features.unflatten(0, videos.shape[:2]))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Nothing is left to relate."""
        return support["features"], query["features"]
