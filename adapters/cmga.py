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
    """Split at the task boundary into ``prepare`` (per video) and ``relate`` (per task).

    Of what ``relate`` does, the support's half belongs to each video alone, too: only ``relate_query`` is per task.
    """

    def __init__(self, shape: BottleneckShape) -> None:
        super().__init__(shape, reads_values=True)
        if shape.attention:
            self.normalization = nn.LayerNorm(shape.motion_width)

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
            attended = VideoState(zip(Motion._fields, map(self.normalization, motion), strict=True), values=values)
        return VideoState(tokens=tokens[:, :, rows], hidden=result[:, :, rows], **attended)

    def support_side(self, state: VideoState) -> tuple[Tensor, VideoState]:
        """Of support videos: tokens ``(S, T, R, C)`` and what queries attend to; neither depends on the task."""
        attended = VideoState({name: state[name] for name in (*Motion._fields, "values") if self.shape.attention})
        return self.back(state["hidden"], state["tokens"]), attended

    def query_side(self, state: VideoState, rows: slice) -> VideoState:
        """What a query needs of its own: the rows that are read, also of its motion."""
        side = VideoState(tokens=state["tokens"], hidden=state["hidden"])
        if self.shape.attention:
            side |= {name: state[name][:, :, rows] for name in Motion._fields}
        return side

    def relate_query(
        self, attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Tokens ``(E*Q, T, R, C)`` of the queries of ``E`` tasks of equal sizes, from both sides, task after task.

        Given ``places (E, S)``, ``attended`` holds any videos, and the places say which are a task's support.
        """
        hidden = query["hidden"]
        if self.shape.attention:
            hidden = hidden + self._cross(attended, query, num_tasks, places)
        return self.back(hidden, query["tokens"])

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        """Tokens ``(S, T, R, C)`` and ``(Q, T, R, C)`` of one task."""
        related, attended = self.support_side(support)
        return related, self.relate_query(attended, self.query_side(query, rows))

    def forward(self, tokens: Tensor, num_support: int) -> Tensor:
        """Support and query videos in one batch, the support first: ``(S+Q, T, N, C)`` to the same shape."""
        everything = slice(None)
        state = self.prepare(tokens, everything)
        support, query = state.split([num_support, len(tokens) - num_support])
        return torch.cat(self.relate(support, query, everything))

    @staticmethod
    def _cross(attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None) -> Tensor:
        """Attention of all query videos to all support videos of their task, ``(E*Q, T, R, a)``.

        One frame index at a time: the maps of all frames at once would need ``T`` times the memory.
        """
        rows = query["forward"].shape[2]
        frames = []
        for t in range(attended["values"].shape[1]):
            frame = {name: tensor[:, t] for name, tensor in attended.items()}
            if places is not None:  # one frame at a time here, too: nothing is copied twice
                frame = {name: tensor[places].flatten(0, 1).to(query["hidden"]) for name, tensor in frame.items()}
            keys = Motion(*(_by_task(frame[name], num_tasks) for name in Motion._fields))  # (E, S*N, d)
            queries = Motion(*(_by_task(query[name][:, t], num_tasks) for name in Motion._fields))  # (E, Q*R, d)
            cross = motion_attention(queries, keys, _by_task(frame["values"], num_tasks))  # (E, Q*R, a)
            frames.append(cross.flatten(0, -2).unflatten(0, (-1, rows)))  # (E*Q, R, a)
        return torch.stack(frames, dim=1)


def _by_task(tokens: Tensor, num_tasks: int) -> Tensor:
    """Tokens ``(E*V, N, c)`` of one frame, each task's together: ``(E, V*N, c)``; of a single task ``(V*N, c)``."""
    together = tokens.flatten(0, 1)  # (E*V*N, c)
    return together if num_tasks == 1 else together.unflatten(0, (num_tasks, -1))
