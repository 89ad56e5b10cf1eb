"""The Cmga-Adapter: the motion of a query video attends to the motion of all support videos of its task, per frame.

Our reconstruction (see ``motion``). Only ``cross`` depends on the task. Everything else depends on one video alone, so
it is computed once per video and may be cached:

    support: y = h + signed(f, g) + values
    query:   y = h + signed(f, g) + values + cross
    cross_t = (softmax(f_q f_s^T / sqrt(d)) + softmax(g_q g_s^T / sqrt(d))) / 2 @ values_s
    out = x + up(y)

The attention layer-norms ``f, g``. Its softmax runs over all tokens of frame ``t`` of all support videos. Support
videos have no cross attention, and queries do not see each other.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..backbones.video_state import VideoState
from .motion import BottleneckShape, Motion, MotionBottleneck, motion_attention


class CmgaAdapter(MotionBottleneck):
    """A Cmga, split at the task boundary into ``prepare`` (per video) and ``relate`` (per task).

    The support half of ``relate`` depends on each video alone, too. Only ``relate_query`` depends on the task.
    """

    def __init__(self, shape: BottleneckShape) -> None:
        super().__init__(shape, reads_values=True)
        if shape.attention:
            self.normalization = nn.LayerNorm(shape.motion_width)

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        """Compute the per-video state of tokens ``(V, T, N, C)``.

        Args:
            tokens: ``(V, T, N, C)``.
            rows: the ``R`` tokens that later layers read.

        Returns:
            ``tokens (V, T, R, C)`` and ``hidden (V, T, R, a)``, the per-video part of the result. With attention also
            ``forward`` and ``backward (V, T, N, d)`` and ``values (V, T, N, a)``, its queries or keys and values.
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
        """Return output tokens ``(S, T, R, C)`` of support videos, and their keys and values for queries."""
        attended = VideoState({name: state[name] for name in (*Motion._fields, "values") if self.shape.attention})
        return self.back(state["hidden"], state["tokens"]), attended

    def query_side(self, state: VideoState, rows: slice) -> VideoState:
        """Return the part of a state that ``relate_query`` needs of a query, with motion cut to ``rows``."""
        side = VideoState(tokens=state["tokens"], hidden=state["hidden"])
        if self.shape.attention:
            side |= {name: state[name][:, :, rows] for name in Motion._fields}
        return side

    def relate_query(
        self, attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Return output tokens ``(E*Q, T, R, C)`` of the queries of ``E`` tasks of equal size, task after task.

        Args:
            attended: keys and values of support videos, from ``support_side``.
            query: query states, from ``query_side``.
            num_tasks: number of tasks ``E``.
            places: ``(E, S)``, indices of each task's support videos in ``attended``. None: ``attended`` holds them
                task after task.
        """
        hidden = query["hidden"]
        if self.shape.attention:
            hidden = hidden + self._cross(attended, query, num_tasks, places)
        return self.back(hidden, query["tokens"])

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        """Return output tokens ``(S, T, R, C)`` and ``(Q, T, R, C)`` of one task."""
        related, attended = self.support_side(support)
        return related, self.relate_query(attended, self.query_side(query, rows))

    def forward(self, tokens: Tensor, num_support: int) -> Tensor:
        """Map support and query videos in one batch, support first, ``(S+Q, T, N, C)``, to the same shape."""
        everything = slice(None)
        state = self.prepare(tokens, everything)
        support, query = state.split([num_support, len(tokens) - num_support])
        return torch.cat(self.relate(support, query, everything))

    @staticmethod
    def _cross(attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None) -> Tensor:
        """Attend from all query videos to all support videos of their task, ``(E*Q, T, R, a)``.

        The loop handles one frame index at a time, because the maps of all frames would take ``T`` times the memory.
        """
        rows = query["forward"].shape[2]
        frames = []
        for t in range(attended["values"].shape[1]):
            frame = {name: tensor[:, t] for name, tensor in attended.items()}
            if places is not None:  # inside the loop, so that only one frame's copy exists at a time
                frame = {
                    name: rearrange(tensor[places], "e s n c -> (e s) n c").to(query["hidden"])
                    for name, tensor in frame.items()
                }
            keys = Motion(*(_by_task(frame[name], num_tasks) for name in Motion._fields))  # (E, S*N, d)
            queries = Motion(*(_by_task(query[name][:, t], num_tasks) for name in Motion._fields))  # (E, Q*R, d)
            cross = motion_attention(queries, keys, _by_task(frame["values"], num_tasks))  # (E, Q*R, a)
            frames.append(cross.flatten(0, -2).unflatten(0, (-1, rows)))  # (E*Q, R, a); one task has no axis E
        return torch.stack(frames, dim=1)


def _by_task(tokens: Tensor, num_tasks: int) -> Tensor:
    """Merge the tokens of each task, ``(E*V, N, c)`` to ``(E, V*N, c)``; for a single task to ``(V*N, c)``."""
    if num_tasks == 1:
        return rearrange(tokens, "v n c -> (v n) c")
    return rearrange(tokens, "(e v) n c -> e (v n) c", e=num_tasks)
