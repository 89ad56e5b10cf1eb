"""A few-shot recognizer: an encoder of frames and a head that compares videos, divided at the task boundary."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..backbones.video_state import VideoState
from .episode import Episode, EpisodeOutput, TaskTargets


class Encoder(Protocol):
    """Frames to features; everything up to the first task layer per video (see ``FrameEncoder``)."""

    backbone: nn.Module

    @property
    def has_task_layer(self) -> bool: ...
    @property
    def image_size(self) -> tuple[int, int]: ...
    def encode(self, videos: Tensor) -> VideoState: ...
    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]: ...


class Head(Protocol):
    """Compares videos of one task; what it computes of each video alone is in ``prepare``.

    A head with losses of its own has a fourth argument, ``compare(..., targets: TaskTargets | None = None)``, and an
    attribute ``loss_weights``, the paper's weight of each loss by name.

    A head that learns from the videos' pixels has an attribute ``wants_frames`` and a second argument,
    ``prepare(features, frames=None)``: while the attribute is true, it is given the videos.
    """

    def prepare(self, features: Tensor) -> VideoState: ...
    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput: ...


class FewShotRecognizer(nn.Module):
    """``encode`` sees one video at a time, ``compare`` one task.

    What ``encode`` returns may be kept and used in any number of episodes; the result is the same as encoding anew.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def encode(self, videos: Tensor) -> VideoState:
        """State of each video ``(V, T, 3, H, W)``, uint8 or normalized; first dimensions ``V``."""
        state = self.encoder.encode(videos)
        frames = videos if getattr(self.head, "wants_frames", False) else None
        if not self.encoder.has_task_layer:
            return self._prepare(state["features"], frames)
        return state if frames is None else VideoState(state, frames=frames)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Logits ``(Q, n_way)`` of the query videos; ``labels (S,)`` of the support in ``0..n_way-1``.

        Given ``targets``, also the losses of a head that has some.
        """
        if self.encoder.has_task_layer:
            related = self.encoder.relate(support, query)
            frames = support.get("frames"), query.get("frames")
            support, query = (self._prepare(*part) for part in zip(related, frames, strict=True))
        options: dict[str, Any] = {"targets": targets} if targets is not None and takes_targets(self.head) else {}
        return self.head.compare(support, labels, query, **options)

    def _prepare(self, features: Tensor, frames: Tensor | None) -> VideoState:
        """The head's state of each video; its frames are for a head that wants them."""
        options: dict[str, Any] = {} if frames is None else {"frames": frames}
        return self.head.prepare(features, **options)

    def forward(self, episodes: Episode | Sequence[Episode]) -> EpisodeOutput | list[EpisodeOutput]:
        """One episode, or several: on an accelerator their videos are encoded in one batch, on a CPU one by one.

        One batch is a tenth slower on a CPU (``bench/task_batching.py``); on accelerators it was not measured. What is
        random in training (dropout) is the same for all episodes of a call, so that both ways give the same.

        In training mode the head is told the episode's targets, and its losses are in the output.
        """
        if isinstance(episodes, Episode):
            return self._answers([episodes])[0]
        if episodes[0].support.device.type != "cpu":
            return self._answers(episodes)
        random_state, outputs = torch.get_rng_state(), []
        for episode in episodes:
            torch.set_rng_state(random_state)
            outputs += self._answers([episode])
        return outputs

    def _answers(self, episodes: Sequence[Episode]) -> list[EpisodeOutput]:
        """Encodes the videos of all episodes in one batch."""
        videos = [part for episode in episodes for part in (episode.support, episode.query)]
        states = self.encode(torch.cat(videos)).split([len(part) for part in videos])
        random_state, outputs = torch.get_rng_state(), []
        for place, episode in enumerate(episodes):
            torch.set_rng_state(random_state)
            targets = episode.targets if self.training else None
            outputs.append(self.compare(states[2 * place], episode.support_labels, states[2 * place + 1], targets))
        return outputs


def takes_targets(head: Head) -> bool:
    """Whether a head has losses of its own, for which it wants a task's `TaskTargets`."""
    return "targets" in inspect.signature(head.compare).parameters
