"""CLIP-FSAR (Wang et al., IJCV 2023): the text of a class enriches the frames of its support videos, then OTAM.

A transformer layer relates the frames of a video. For a support video, the text features of its class are one more
token, which is dropped after the layer. The released code was not compared, see docs/text.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...backbones.state import VideoState
from ...backbones.text import ClassTexts, mean_frame
from ...errors import DmgalError
from ..episode import EpisodeOutput, TaskTargets
from .frame_attention import FrameAttention
from .frame_distance import FrameDistanceHead, check_frames
from .otam import OTAM
from .text_fusion import CLASS_TEXT


class ClipFSAR(nn.Module):
    """A head whose support videos know the text of their class.

    In training the text comes from `use_texts`, and the loss ``video_text`` classifies the mean frame of each video
    among the texts of all base classes. Otherwise, support videos bring it as ``class_text``. Without text, support
    videos are processed like queries, which `TextFusion` does not change.

    Args:
        channels: width ``D`` of the frame features, which is that of the text.
        num_heads: attention heads; must divide the width.
        expansion: width of the layer's MLP as a multiple of ``D``.
        matcher: head that compares the frames. None: OTAM with the paper's relaxation and the mean of the shots.
    """

    learns_text = True
    loss_weights: ClassVar[Mapping[str, float]] = {"video_text": 1.0}
    base_texts: Tensor | None

    def __init__(
        self, channels: int, num_heads: int = 8, expansion: int = 2, matcher: FrameDistanceHead | None = None
    ) -> None:
        super().__init__()
        self.attention = FrameAttention(channels, num_heads)
        hidden = expansion * channels
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels, bias=False)
        )  # a centering matcher would cancel the bias
        self.matcher = OTAM(relaxation=0.5, shots="prototype", eps=0.0) if matcher is None else matcher
        self.register_buffer("base_texts", None, persistent=False)
        self.text_scale = 1.0
        self.class_texts: ClassTexts | None = None

    def use_texts(self, texts: ClassTexts, base_classes: Sequence[str]) -> None:
        """Use the text of all classes of a data set in training and validation.

        Args:
            texts: of all classes.
            base_classes: names of the base classes, in the order of their indices in `TaskTargets`.
        """
        self.class_texts, self.text_scale = texts, texts.logit_scale
        self.base_texts = texts.select(base_classes).features

    def prepare(self, features: Tensor) -> VideoState:
        """Return the ``features`` and the related ``frames`` of videos, both ``(V,T,D)``."""
        check_frames(self, features)
        return VideoState(frames=self._relate(features), features=features)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` and, given targets and texts, the loss ``video_text``."""
        text = self._text_of(support, targets)
        frames = support["frames"] if text is None else self._relate_with(text, support["features"])
        prepared = self.matcher.prepare(frames), self.matcher.prepare(query["frames"])
        output = self.matcher.compare(prepared[0], labels, prepared[1])
        return EpisodeOutput(output.logits, {} if targets is None else self._losses(support, query, targets))

    def _text_of(self, support: VideoState, targets: TaskTargets | None) -> Tensor | None:
        if targets is not None and targets.support_classes is not None and self.base_texts is not None:
            return self.base_texts[targets.support_classes]
        return support.get(CLASS_TEXT)

    def _relate(self, tokens: Tensor) -> Tensor:
        attended = self.attention(tokens)
        return attended + self.mlp(attended)

    def _relate_with(self, text: Tensor, features: Tensor) -> Tensor:
        if text.shape[-1] != features.shape[-1]:
            raise DmgalError(
                "The text does not fit the frame features.",
                received=f"{text.shape[-1]} channels of text, {features.shape[-1]} of frames",
                expected="the projected features of the same model (pooling=None)",
                remedy="Remove backbone.pooling.",
            )
        tokens = torch.cat([text.to(features.dtype)[:, None], features], dim=1)
        with sdpa_kernel(SDPBackend.MATH):  # torch cannot vectorize the others over tasks
            return self._relate(tokens)[:, 1:]

    def _losses(self, support: VideoState, query: VideoState, targets: TaskTargets) -> dict[str, Tensor]:
        if self.base_texts is None or targets.support_classes is None or targets.query_classes is None:
            return {}
        classes = torch.cat((targets.support_classes, targets.query_classes))
        with torch.autocast(classes.device.type, enabled=False):
            videos = torch.cat([mean_frame(state["features"]) for state in (support, query)])
            cosines = functional.normalize(videos, dim=-1) @ self.base_texts.to(videos.dtype).T
            return {"video_text": functional.cross_entropy(self.text_scale * cosines, classes)}
