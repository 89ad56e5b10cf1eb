"""CLIP-FSAR (Wang et al., IJCV 2023): the text of a class enriches the frames of its support videos, then OTAM.

A transformer layer relates the frames of a video. For a support video, the text features of its class are one more
token, which is dropped after the layer. The logits equal those of the released code on random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...adapters.common import load_reference_state
from ...backbones.state import VideoState
from ...backbones.text import ClassTexts, mean_frame
from ...errors import DmgalError
from ..episode import EpisodeOutput, TaskTargets
from .frame_attention import FrameAttention
from .frame_distance import FrameDistanceHead, check_frames, check_option, class_means
from .otam import OTAM
from .text_fusion import CLASS_TEXT

_LAYER = "context2.layers.0"
_REFERENCE_NAMES = {
    f"{_LAYER}.0.norm": "attention.norm",
    f"{_LAYER}.0.fn.to_qkv": "attention.qkv",
    f"{_LAYER}.0.fn.to_out.0": "attention.out",
    f"{_LAYER}.1.net.0": "mlp.0",
    f"{_LAYER}.1.net.3": "mlp.2",
}


class TrainingTexts(NamedTuple):
    """The texts ``(C,D)`` that a task is trained with, and the index of each video's class among them."""

    features: Tensor
    support: Tensor
    query: Tensor


class ClipFSAR(nn.Module):
    """A head whose support videos know the text of their class.

    In training the text comes from `use_texts`, and the loss ``video_text`` classifies the mean frame of each video
    among the texts of all base classes, or of the classes of its task if the text tower is trained. Otherwise, support
    videos bring it as ``class_text``. Without text, support videos are processed like queries, which `TextFusion` does
    not change.

    Three differences to the released code: no dropout in the layer, ``video_text`` has the scale of the text tower
    instead of a learned one, and the frames of a video are normalized before their mean is compared with text.

    Args:
        channels: width ``D`` of the frame features, which is that of the text.
        num_heads: attention heads; must divide the width.
        expansion: width of the layer's MLP as a multiple of ``D``.
        merge: ``"after"`` relates each support video with its text and averages the shots of a class afterwards.
            ``"before"``, the released form for 5 shots, averages first.
        matcher: head that compares the frames. None: OTAM with the paper's relaxation and the mean of the shots.

    Attributes:
        text_lora: folder of the LoRA that the text tower was trained with, in PEFT's format, for the text of other
            classes. None: the tower is as loaded.
    """

    learns_text = True
    loss_weights: ClassVar[Mapping[str, float]] = {"video_text": 1.0}
    base_texts: Tensor | None

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        expansion: int = 4,
        merge: Literal["after", "before"] = "after",
        matcher: FrameDistanceHead | None = None,
    ) -> None:
        super().__init__()
        check_option(self, "merge", merge, ("after", "before"))
        self.matcher = OTAM(relaxation=0.5, shots="prototype", eps=0.0) if matcher is None else matcher
        self.attention = FrameAttention(channels, num_heads)
        hidden, is_centered = expansion * channels, self.matcher.center == "video"  # centering would cancel the bias
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels, bias=not is_centered)
        )
        self.merge = merge
        self.register_buffer("base_texts", None, persistent=False)
        self.text_scale = 1.0
        self.class_texts: ClassTexts | None = None
        self.base_classes: tuple[str, ...] = ()
        self.text_tower: nn.Module | None = None
        self.text_lora: Path | None = None

    def use_texts(self, texts: ClassTexts, base_classes: Sequence[str], tower: nn.Module | None = None) -> None:
        """Use the text of all classes of a data set in training and validation.

        Args:
            texts: of all classes.
            base_classes: names of the base classes, in the order of their indices in `TaskTargets`.
            tower: a text tower to train. It maps `ClassTexts` to their features ``(C,D)`` by its current weights. None:
                the features of ``texts`` are used.
        """
        self.class_texts, self.text_scale = texts, texts.logit_scale
        self.base_texts = texts.select(base_classes).features
        self.base_classes, self.text_tower = tuple(base_classes), tower

    def prepare(self, features: Tensor) -> VideoState:
        """Return the ``features`` and the related ``frames`` of videos, both ``(V,T,D)``."""
        check_frames(self, features)
        return VideoState(frames=self._relate(features), features=features)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` and, given targets and texts, the loss ``video_text``."""
        trained, features = self._training_texts(targets), support["features"]
        text = support.get(CLASS_TEXT) if trained is None else trained.features[trained.support]
        losses = {} if trained is None else self._losses(support, query, trained)
        if self.merge == "before":
            features, text = class_means(features, labels), None if text is None else class_means(text, labels)
            labels = torch.arange(len(features), device=labels.device)
            frames = self._relate(features) if text is None else self._relate_with(text, features)
        else:
            frames = support["frames"] if text is None else self._relate_with(text, features)
        prepared = self.matcher.prepare(frames), self.matcher.prepare(query["frames"])
        return EpisodeOutput(self.matcher.compare(prepared[0], labels, prepared[1]).logits, losses)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the layer's weights under the names of the released code. Its learned scale is ignored."""
        parts = [f"{_LAYER}.0.fn.to_{name}.weight" for name in "qkv"]
        state = dict(state)
        if all(part in state for part in parts):
            state[f"{_LAYER}.0.fn.to_qkv.weight"] = torch.cat([state.pop(part) for part in parts])
        load_reference_state(self, state, _REFERENCE_NAMES, ["scale"])

    def _training_texts(self, targets: TaskTargets | None) -> TrainingTexts | None:
        if targets is None or self.base_texts is None or self.class_texts is None:
            return None
        if targets.support_classes is None or targets.query_classes is None:
            return None
        if self.text_tower is None:
            return TrainingTexts(self.base_texts, targets.support_classes, targets.query_classes)
        classes, support = torch.unique(targets.support_classes, return_inverse=True)
        names = [self.base_classes[index] for index in classes.tolist()]
        features = self.text_tower(self.class_texts.select(names))
        return TrainingTexts(features, support, torch.searchsorted(classes, targets.query_classes))

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
        scaled = text * text.shape[-1] ** 0.5  # the layer norm's constant is tiny for the text tower's own norms, too
        tokens = torch.cat([scaled.to(features.dtype)[:, None], features], dim=1)
        with sdpa_kernel(SDPBackend.MATH):  # torch cannot vectorize the others over tasks
            return self._relate(tokens)[:, 1:]

    def _losses(self, support: VideoState, query: VideoState, texts: TrainingTexts) -> dict[str, Tensor]:
        classes = torch.cat((texts.support, texts.query))
        with torch.autocast(classes.device.type, enabled=False):
            videos = torch.cat([mean_frame(state["features"]) for state in (support, query)])
            cosines = functional.normalize(videos, dim=-1) @ texts.features.to(videos.dtype).T
            return {"video_text": functional.cross_entropy(self.text_scale * cosines, classes)}
