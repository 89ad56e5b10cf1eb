"""The Cmga-Adapter: motion of a query video attends to the motion of all support videos of its task, frame by frame.

Our reconstruction (see ``motion``). Everything but the cross attention belongs to one video alone, so it is prepared
once and may be kept; only ``cross`` is per task:

    support: y = h + signed(f, g) + values
    query:   y = h + signed(f, g) + values + cross
    cross_t = (softmax(f_q f_s^T / sqrt(d)) + softmax(g_q g_s^T / sqrt(d))) / 2 @ values_s
    out = x + up(y)

with ``f, g`` layer-normed in the attention, and the softmax over all tokens of frame ``t`` of all support videos. The
support is not cross-attended and queries never see each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones.video_state import VideoState
from .motion import BottleneckShape, Motion, MotionBottleneck, motion_attention


class CmgaAdapter(MotionBottleneck):
    """Split at the task boundary into ``prepare`` (per video) and ``relate`` (per task)."""

    def __init__(self, shape: BottleneckShape) -> None:
        super().__init__(shape, reads_values=True)
        if shape.attention:
            self.norm = nn.LayerNorm(shape.motion_width)

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        """From tokens ``(V, T, N, C)``; ``rows`` are the tokens that are read behind this layer.

        Returns:
            ``tokens (V, T, R, C)`` and ``hidden (V, T, R, a)``, the per-video part of the result; ``forward`` and
            ``backward (V, T, N, d)`` and ``values (V, T, N, a)``, what queries attend to (and with), where they do.
        """
        hidden = self.hidden(tokens)
        motion = self.motion(hidden) if self.shape.reads_motion else None
        values = self.values(hidden)
        result = hidden + (self.signed_values(motion) if motion else 0.0) + values
        attended = VideoState()
        if motion and self.shape.attention:
            attended = VideoState(zip(Motion._fields, map(self.norm, motion), strict=True), values=values)
        return VideoState(tokens=tokens[:, :, rows], hidden=result[:, :, rows], **attended)

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        """Tokens ``(S, T, R, C)`` and ``(Q, T, R, C)`` of one task."""
        hidden = query["hidden"]
        if self.shape.attention:
            hidden = hidden + self._cross(support, query, rows)
        return support["tokens"] + self.up(support["hidden"]), query["tokens"] + self.up(hidden)

    def forward(self, tokens: Tensor, num_support: int) -> Tensor:
        """Support and query videos in one batch, the support first: ``(S+Q, T, N, C)`` to the same shape."""
        everything = slice(None)
        state = self.prepare(tokens, everything)
        support, query = state.split([num_support, len(tokens) - num_support])
        return torch.cat(self.relate(support, query, everything))

    @staticmethod
    def _cross(support: VideoState, query: VideoState, rows: slice) -> Tensor:
        """Attention of all query videos to all support videos, ``(Q, T, R, a)``.

        One frame index at a time: the maps of all frames at once would need ``T`` times the memory.
        """
        frames = []
        for t in range(support["values"].shape[1]):
            keys = Motion(*(support[name][:, t].flatten(0, 1) for name in Motion._fields))  # (S*N, d)
            queries = Motion(*(query[name][:, t, rows] for name in Motion._fields))  # (Q, R, d)
            frames.append(motion_attention(queries, keys, support["values"][:, t].flatten(0, 1)))  # (Q, R, a)
        return torch.stack(frames, dim=1)
