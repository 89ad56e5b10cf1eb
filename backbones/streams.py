"""Several encoders of the same video side by side, as in two-stream networks: what a frozen backbone sees, what moves.

The second stream is a motion expert: the same backbone with its adapter, or a small one beside a backbone of any kind.
A head such as `LateFusion` weighs the streams. No layer relates the videos of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..errors import DmgalError
from .encoder import BlockInput, FrameEncoder
from .frame_memory import FrameMemory, recent_frames
from .recomputation import switched_off
from .state import VideoState


class StreamEncoder(nn.Module):
    """An encoder with the frame features of all streams, concatenated.

    Videos have the size of the largest stream and are resized for the others. Streams of one encoder that follow each
    other share the blocks before its first adapter.

    Args:
        streams: encoders with frame features ``(V, T, D)``. An encoder may be given several times.
        adapted: for each stream, False to switch the adapters of its backbone off. Default: all on.

    Raises:
        DmgalError: a stream relates the videos of a task, or has maps instead of frame features.
    """

    has_task_layer = False
    frame_memories: tuple[FrameMemory | None, ...] = ()
    """For each stream, where its encoding starts instead of the embedding."""

    def __init__(self, streams: Sequence[Any], adapted: Sequence[bool] | None = None) -> None:
        super().__init__()
        self.adapted = (True,) * len(streams) if adapted is None else tuple(adapted)
        for encoder, is_adapted in zip(streams, self.adapted, strict=True):
            with _adapters(encoder, is_adapted):
                _check_stream(encoder)
        self._encoders = nn.ModuleList(dict.fromkeys(streams))  # each once, also in the state dict
        self._places = tuple([*dict.fromkeys(streams)].index(encoder) for encoder in streams)

    @property
    def streams(self) -> list[Any]:
        """The encoder of each stream."""
        return [self._encoders[place] for place in self._places]

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the first stream."""
        backbone: nn.Module = self.streams[0].backbone
        return backbone

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images of the largest stream."""
        return max((encoder.image_size for encoder in self.streams), key=lambda size: size[0] * size[1])

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels ``D`` of each stream."""
        return tuple(encoder.feature_width for encoder in self.streams)

    @property
    def feature_width(self) -> int:
        """Number of channels of all streams together."""
        return sum(self.widths)

    @property
    def mean(self) -> Tensor:
        """Means of the image normalization of all streams, ``(3 * streams,)``."""
        return torch.cat([encoder.mean.flatten() for encoder in self.streams])

    @property
    def std(self) -> Tensor:
        """Standard deviations of the image normalization of all streams, ``(3 * streams,)``."""
        return torch.cat([encoder.std.flatten() for encoder in self.streams])

    def encode(self, videos: Tensor) -> VideoState:
        """Return ``{"features": (V, T, D1 + D2 + ...)}`` of uint8 videos ``(V, T, 3, H, W)``.

        Raises:
            DmgalError: the videos are normalized already.
        """
        if videos.dtype != torch.uint8:
            raise DmgalError(
                "Each stream normalizes the videos in its own way.",
                received=f"videos of type {videos.dtype}",
                expected="torch.uint8",
                remedy="Pass the decoded frames.",
            )
        features, previous, start = [], None, None
        memories = self.frame_memories or (None,) * len(self.adapted)
        for encoder, is_adapted, memory in zip(self.streams, self.adapted, memories, strict=True):
            if encoder is not previous:
                resized, start, previous = _resized(videos, encoder.image_size), None, encoder
            with _adapters(encoder, is_adapted):
                if memory is not None:
                    features.append(encoder.encode(resized, memory.start(resized))["features"])
                    continue
                if start is None:
                    start = _shared_part(encoder, resized)
                options = {} if start is None else {"start": start}
                features.append(encoder.encode(resized, **options)["features"])
        return VideoState(features=torch.cat(features, dim=-1))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Return the features of support and query, which no layer relates."""
        return support["features"], query["features"]


def remember_recent_frames(encoder: object, num_bytes: float = 2**26) -> list[FrameMemory]:
    """Let an encoder that is not trained reuse what it computed for frames alone. Return its memories.

    Blocks whose results depend on other frames, those after the first active adapter, are computed for each window.
    There is no memory if these are all blocks, and none for encoders of other kinds.

    Args:
        encoder: a `FrameEncoder`, or a `StreamEncoder` of such encoders.
        num_bytes: size of the memory of each stream. The oldest frames are forgotten.
    """
    if isinstance(encoder, StreamEncoder):
        streams = zip(encoder.streams, encoder.adapted, strict=True)
        encoder.frame_memories = tuple(
            recent_frames(stream, num_bytes, is_adapted) if isinstance(stream, FrameEncoder) else None
            for stream, is_adapted in streams
        )
        return [memory for memory in encoder.frame_memories if memory is not None]
    if not isinstance(encoder, FrameEncoder):
        return []
    encoder.frame_memory = memory = recent_frames(encoder, num_bytes)
    return [] if memory is None else [memory]


def _shared_part(encoder: Any, videos: Tensor) -> BlockInput | None:
    """Return the point of an encoding before the first adapter, or None if there is no such point."""
    block = encoder.first_adapted_block if isinstance(encoder, FrameEncoder) else None
    return None if block is None else encoder.advance(encoder.embed(videos), block)


def _adapters(encoder: Any, is_adapted: bool) -> AbstractContextManager[None]:
    """Switch the backbone's adapters off inside the context if ``is_adapted`` is false."""
    return nullcontext() if is_adapted else switched_off(encoder.backbone)


def _resized(videos: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(videos.shape[-2:]) == tuple(size):
        return videos
    images = rearrange(_centered(videos, size), "v t c h w -> (v t) c h w")
    if images.device.type == "cpu":
        images = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
    else:  # other devices have no kernel for uint8
        images = functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
        images = images.round().clamp(0, 255).to(torch.uint8)
    return rearrange(images, "(v t) c h w -> v t c h w", v=len(videos))


def _centered(videos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the largest part in the middle of ``(V, T, 3, H, W)`` with the aspect ratio of ``size``."""
    height, width = videos.shape[-2:]
    wanted = min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))
    top, left = (height - wanted[0]) // 2, (width - wanted[1]) // 2
    return videos[..., top : top + wanted[0], left : left + wanted[1]]


def _check_stream(encoder: Any) -> None:
    if encoder.has_task_layer or encoder.pooling == "map":
        raise DmgalError(
            "A stream needs frame features that do not depend on a task.",
            received="a task layer (a Cmga)" if encoder.has_task_layer else 'pooling="map"',
            expected="an encoder with a Smga or without adapters, and another pooling",
            remedy="Train method/smga, or remove backbone.pooling.",
        )
