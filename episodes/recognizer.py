"""A few-shot recognizer: an encoder that sees single videos, and a head that compares the videos of a task."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..backbones import BlockInput, VideoState
from .episode import Episode, EpisodeOutput, TaskTargets


class Encoder(Protocol):
    """Interface of an encoder from frames to features; ``encode`` sees each video alone (see ``FrameEncoder``)."""

    @property
    def backbone(self) -> nn.Module:
        """The backbone, with its adapters."""

    @property
    def has_task_layer(self) -> bool:
        """True if features depend on the task, so that `relate` computes them."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames."""

    def encode(self, videos: Tensor) -> VideoState:
        """Return the state, with first dimension ``V``, of videos ``(V, T, 3, H, W)``."""

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Return the features ``(S, T, D)`` and ``(Q, T, D)`` of a task's videos from their states."""


class Head(Protocol):
    """Interface of a head: ``prepare`` processes each video alone, ``compare`` compares the videos of a task.

    A head with its own losses takes a fourth argument, ``compare(..., targets: TaskTargets | None = None)``. Its
    attribute ``loss_weights`` holds the paper's weight of each loss by name.

    A head that learns from pixels has an attribute ``wants_frames`` and takes a second argument,
    ``prepare(features, frames=None)``. It receives the videos while the attribute is true.
    """

    def prepare(self, features: Tensor) -> VideoState:
        """Return the state, with first dimension ``V``, of features ``(V, T, D)``."""

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q, n_way)`` from the states of a task's videos and support labels ``(S,)``."""


class FewShotRecognizer(nn.Module):
    """An encoder and a head: ``encode`` processes each video alone, ``compare`` processes a task.

    The states from ``encode`` can be reused in any number of episodes, with the same result as encoding again.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def encode(self, videos: Tensor, start: BlockInput | None = None) -> VideoState:
        """Return the state, with first dimension ``V``, of videos ``(V, T, 3, H, W)``, uint8 or normalized.

        A `FrameEncoder` can resume the encoding of these videos from ``start``.
        """
        options: dict[str, object] = {} if start is None else {"start": start}
        state = self.encoder.encode(videos, **options)
        frames = videos if getattr(self.head, "wants_frames", False) else None
        if not self.encoder.has_task_layer:
            return self._prepare(state["features"], frames)
        return state if frames is None else VideoState(state, frames=frames)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return logits ``(Q, n_way)`` of the query videos, given support labels ``(S,)`` in ``0..n_way-1``.

        With ``targets``, the output also has the head's own losses.
        """
        if self.encoder.has_task_layer:
            related = self.encoder.relate(support, query)
            frames = support.get("frames"), query.get("frames")
            support, query = (self._prepare(*video_inputs) for video_inputs in zip(related, frames, strict=True))
        options: dict[str, object] = {"targets": targets} if targets is not None and takes_targets(self.head) else {}
        return self.head.compare(support, labels, query, **options)

    def _prepare(self, features: Tensor, frames: Tensor | None) -> VideoState:
        """Return the head's state of each video; pass frames on to a head that wants them."""
        options: dict[str, object] = {} if frames is None else {"frames": frames}
        return self.head.prepare(features, **options)

    def forward(self, episodes: Episode | Sequence[Episode]) -> EpisodeOutput | list[EpisodeOutput]:
        """Return the output of one episode, with logits ``(Q, n_way)``, or of each of several.

        An accelerator encodes the videos of all episodes in one batch, a CPU encodes them episode by episode. One
        batch is 10 % slower on a CPU (``bench/step_cost.py``); accelerators were not measured. All episodes of a
        call use the same random numbers (dropout), so both ways give the same result.

        In training mode the head receives the episode's targets, and the output has its losses.
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
        """Encode the videos of all episodes in one batch and compare them episode by episode."""
        videos = [part for episode in episodes for part in (episode.support, episode.query)]
        states = self.encode(torch.cat(videos)).split([len(part) for part in videos])
        random_state, outputs = torch.get_rng_state(), []
        for index, episode in enumerate(episodes):
            torch.set_rng_state(random_state)
            targets = episode.targets if self.training else None
            support, query = states[2 * index], states[2 * index + 1]
            outputs.append(self.compare(support, episode.support_labels, query, targets))
        return outputs


def takes_targets(head: Head) -> bool:
    """Return True if ``head.compare`` accepts ``targets``, for losses of its own."""
    return "targets" in inspect.signature(head.compare).parameters
