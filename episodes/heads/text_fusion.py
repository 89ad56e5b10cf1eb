"""Fusion of any head with the text of the classes, ``logits = visual + weight * text``.

The text logits are CLIP's own (Radford et al., ICML 2021): the cosine of a video's mean normalized frame feature and
the text features of a class, times the model's scale, plus its bias. CLIP-FSAR (Wang et al., IJCV 2023) fuses the
probabilities of both in the same way, as a product with exponents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...backbones.state import VideoState
from ...backbones.text import ClassTexts, cosine_logits, mean_frame
from ...errors import DmgalError
from ..episode import EpisodeOutput
from ..recognizer import Head
from .frame_distance import check_frames, class_means

MEAN_FRAME, CLASS_TEXT = "mean_frame", "class_text"
"""Names of a video's image features and of its class's text features in a `VideoState`."""


class TextFusion(nn.Module):
    """A head around another one that adds text logits. It has no weights of its own.

    Support videos bring the text features of their class as ``class_text`` ``(S, D)``, for example by
    ``states.with_support(class_text=texts.features[labels])``. Those of query videos are never read.

    Args:
        head: the head of the visual logits. None: the text logits alone, which is zero-shot recognition.
        texts: the scale, bias and weight of the text logits, and their width.
        weight: factor of the text logits. None: that of the texts.
        has_own_stream: the first ``D`` channels of the features are for the text alone, and the head receives the
            others. Otherwise, the head receives all channels.
    """

    def __init__(
        self, head: Head | None, texts: ClassTexts, weight: float | None = None, has_own_stream: bool = False
    ) -> None:
        super().__init__()
        self.head = head
        self.weight = texts.weight if weight is None else weight
        self.width = texts.features.shape[-1]
        self.logit_scale, self.logit_bias = texts.logit_scale, texts.logit_bias
        self.has_own_stream = has_own_stream

    @property
    def pair_scores(self) -> Literal["mean", "one_shot"] | None:
        """The rule of the head: the text logits of a class depend on the query and on this class only."""
        return "mean" if self.head is None else getattr(self.head, "pair_scores", None)

    def prepare(self, features: Tensor) -> VideoState:
        """Return the head's state of frames ``(V, T, D)``, and their mean for the text.

        Raises:
            DmgalError: the features are maps, or have fewer channels than the text.
        """
        check_frames(self, features)
        if features.shape[-1] < self.width or (self.has_own_stream and features.shape[-1] == self.width):
            raise DmgalError(
                "These image features cannot be compared with text.",
                received=f"{features.shape[-1]} channels",
                expected=f"the {self.width} projected channels of the same model" + " and others" * self.has_own_stream,
                remedy="Use the backbone of the text with its own pooling.",
            )
        own, others = features[..., : self.width], features[..., self.width :]
        state = {} if self.head is None else self.head.prepare(others if self.has_own_stream else features)
        return VideoState(state, **{MEAN_FRAME: mean_frame(own)})

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q, n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``.

        Raises:
            DmgalError: the support videos bring no text.
        """
        if CLASS_TEXT not in support:
            raise DmgalError(
                "The support videos of a task bring no text.",
                received=f"states with {', '.join(support)}",
                expected=f"the text features of their classes as {CLASS_TEXT}",
                remedy="Use states.with_support(class_text=texts.features[labels]).",
            )
        with torch.autocast(labels.device.type, enabled=False):
            logits = self.text_logits(query, class_means(support[CLASS_TEXT], labels))
            if self.head is not None:
                logits = self.head.compare(support, labels, query).logits + self.weight * logits
        return EpisodeOutput(logits)

    def text_logits(self, query: VideoState, texts: Tensor) -> Tensor:
        """Return the text logits ``(Q, n_way)`` of prepared query videos and text features ``(n_way, D)``."""
        return cosine_logits(query[MEAN_FRAME], texts, self.logit_scale, self.logit_bias)
