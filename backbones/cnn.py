"""Feature maps of a convolutional backbone (a transformers ResNet), with the encoder's contract.

Nothing in it relates videos, so everything is on the videos' side of the task boundary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .normalization import IMAGENET, preprocessing, told_or
from .video_state import VideoState


class MapEncoder(nn.Module):
    """Wraps a model whose output has ``last_hidden_state`` maps ``(B, C, h, w)``.

    Args:
        backbone: e.g. transformers' ``ResNetModel``; its preprocessing is read from ``backbone.dmgal_preprocessing``
            where ``load_backbone`` found one, else ImageNet's.
        pooling: ``"map"`` for whole maps ``(C, h, w)``; ``None`` for their mean ``(C,)``.
    """

    has_task_layer = False
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any, pooling: Literal["map"] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        told = preprocessing(backbone)
        edge = told.get("size", {}).get("shortest_edge", 224)
        self.image_size = (edge, edge)
        self.width = self.feature_width = backbone.config.hidden_sizes[-1]
        mean, std = told_or(IMAGENET, told.get("image_mean"), told.get("image_std"))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode(self, videos: Tensor) -> VideoState:
        """Maps ``(V, T, C, h, w)`` or features ``(V, T, C)`` of videos ``(V, T, 3, H, W)``; uint8 is normalized."""
        images = videos.flatten(0, 1)  # (V*T, 3, H, W)
        if images.dtype == torch.uint8:
            dtype = next(self.backbone.parameters()).dtype
            images = ((images / 255 - self.mean) / self.std).to(dtype)
        maps = self.backbone(images).last_hidden_state  # (V*T, C, h, w)
        features = maps if self.pooling == "map" else maps.mean((2, 3))
        return VideoState(features=features.unflatten(0, videos.shape[:2]))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Nothing is left to relate."""
        return support["features"], query["features"]
