"""Recordings of a layer's motion, and the maps that figures show.

The maps of M2ACL's and DMGAL's figures: motion features are max-pooled to 3 x 3 cells per frame, and the products of
the cells of two frames form a 9 x 9 map. Rows are the cells of the first frame, columns those of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..episodes import FewShotRecognizer
from ..episodes.heads.frame_distance import at_least_float32
from ..errors import DmgalError
from ..videos.decoding.clip import one_frame
from .layers import Attention, MotionTokens, Output, ShownLayer, choose_layer

Direction = Literal["both", "forward", "backward"]


@dataclass(frozen=True, eq=False)
class Recording:
    """Motion of videos in one layer, on the CPU. Support videos come first.

    Attributes:
        frames: the videos, uint8 ``(V, T, 3, H, W)``.
        num_support: number of support videos.
        layer: name of the layer, see `find_layers`.
        title: the layer in words.
        attention: kind of the layer's attention.
        motion: features of the motion to the next and to the previous frame, float32 ``(2, V, T, N, d)``.
        relative: the motion is relative to that of still frames, see `record`.
        attended: tokens whose products are the attention, ``(2, V, T, N, d)``.
        num_prefix_tokens: tokens before the patches.
        grid: rows and columns of patches.
        class_token_only: only the class token's attention reaches the features.
    """

    frames: Tensor
    num_support: int
    layer: str
    title: str
    attention: Attention
    motion: Tensor
    attended: Tensor
    num_prefix_tokens: int
    grid: tuple[int, int]
    class_token_only: bool = False
    relative: bool = False

    @property
    def num_videos(self) -> int:
        """Number of videos ``V``."""
        return len(self.frames)

    @property
    def num_frames(self) -> int:
        """Number of frames ``T`` of a video."""
        return self.frames.shape[1]

    @property
    def patches(self) -> Tensor:
        """Motion features of the patches, ``(2, V, T, P, d)``."""
        return self.motion[:, :, :, self.num_prefix_tokens :]


@torch.no_grad()
def record(
    recognizer: FewShotRecognizer,
    videos: Tensor,
    layer: str | None = None,
    num_support: int = 0,
    relative: bool = True,
) -> Recording:
    """Run videos through a recognizer, in evaluation mode, and return the motion in one of its layers.

    Learned motion features are not zero for frames that stand still, and this part may outshine the rest. By default
    it is subtracted: for each frame the features at its index in a video that repeats the frame. This takes ``T`` more
    videos per video. The attention is never changed.

    Args:
        recognizer: with any encoder and head.
        videos: uint8 ``(V, T, 3, H, W)``, support videos first.
        layer: see `find_layers`. None: see `choose_layer`, across videos if there are support videos.
        num_support: number of support videos.
        relative: subtract the features of still frames. False: the features as they are, as in the papers.

    Raises:
        DmgalError: there is no such layer or no grid of patches, or the videos have a single frame.
    """
    _check_videos(videos, num_support)
    shown = choose_layer(recognizer.eval(), layer, across=num_support > 0)
    read = _motion(recognizer, shown, videos, num_support)
    recording = Recording(
        frames=videos.cpu(),
        num_support=num_support,
        layer=shown.name,
        title=shown.title,
        attention=shown.attention,
        motion=at_least_float32(read.motion).cpu(),
        attended=at_least_float32(read.attended).cpu(),
        num_prefix_tokens=read.num_prefix_tokens,
        grid=(read.grid[0], read.grid[1]),
        class_token_only=shown.class_token_only,
    )
    if not relative or shown.name.endswith("embedding"):  # its differences are zero for still frames
        return recording
    still = torch.stack([_still_motion(recognizer, shown, video) for video in videos], dim=1)
    return replace(recording, motion=recording.motion - still, relative=True)


def _still_motion(recognizer: FewShotRecognizer, shown: ShownLayer, video: Tensor) -> Tensor:
    """Return the motion ``(2, T, N, d)`` of each frame of a video ``(T, 3, H, W)`` at its index among its copies."""
    copies = video[:, None].expand(-1, len(video), -1, -1, -1)
    motion = at_least_float32(_motion(recognizer, shown, copies, 0).motion).cpu()  # (2, T, T, N, d)
    return torch.stack([motion[:, t, t] for t in range(len(video))], dim=1)


def _motion(recognizer: FewShotRecognizer, shown: ShownLayer, videos: Tensor, num_support: int) -> MotionTokens:
    """Run videos and return the motion in a layer."""
    captured: list[Tensor] = []

    def keep(module: object, args: tuple[Tensor, ...], kwargs: dict[str, object], output: Output = ()) -> None:
        captured.append(shown.capture(args, kwargs, output).detach())

    if shown.name.endswith("embedding"):  # before the adapters that change the input of the block
        handle = shown.hooked.register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
    else:
        handle = shown.hooked.register_forward_hook(keep, with_kwargs=True)
    try:
        _run(recognizer, videos.to(next(recognizer.parameters()).device), num_support, shown.is_in_head)
    finally:
        handle.remove()
    tokens = torch.cat(captured)
    if shown.per_frame:
        tokens = tokens.unflatten(0, (-1, videos.shape[1]))
    # A stream encoder also runs the frozen blocks, and a single video is related to itself. The last pass counts.
    return shown.read(tokens[-len(videos) :])


def _run(recognizer: FewShotRecognizer, videos: Tensor, num_support: int, with_head: bool) -> None:
    state, encoder = recognizer.encoder.encode(videos), recognizer.encoder
    if encoder.has_task_layer:
        support, query = state.split([num_support, len(videos) - num_support]) if num_support else (state, state)
        features = torch.cat(encoder.relate(support, query))
    elif with_head:
        features = state["features"]
    if with_head:
        recognizer.head.prepare(features)


def _check_videos(videos: Tensor, num_support: int) -> None:
    shape = tuple(videos.shape)
    if len(shape) != 5 or shape[2] != 3 or videos.dtype != torch.uint8 or not 0 <= num_support < shape[0]:
        raise DmgalError(
            "These are no videos to show.",
            received=f"{str(videos.dtype).removeprefix('torch.')} {shape}, num_support={num_support}",
            expected="uint8 (videos, frames, 3, height, width), with at least one video after the support videos",
            remedy="Stack decoded clips of the same number of frames.",
        )
    if shape[1] < 2:
        raise one_frame("videos of one frame")


# ---- similarity of motion ----


def motion_cells(recording: Recording, cells: int = 3, direction: Direction = "both") -> Tensor:
    """Return motion max-pooled to ``cells x cells`` per frame, ``(V, T, K, d)``; fewer cells for a smaller grid.

    With both directions, their channels are concatenated, so a product of two cells is the sum over the directions.
    """
    rows, columns = recording.grid
    size = min(cells, rows), min(cells, columns)
    maps = rearrange(recording.patches, "d v t (h w) c -> (d v t) c h w", h=rows)
    pooled = functional.adaptive_max_pool2d(maps, size)
    pooled = rearrange(pooled, "(d v t) c h w -> d v t (h w) c", d=2, v=recording.num_videos)
    if direction == "both":
        return rearrange(pooled, "d v t k c -> v t k (d c)")
    return pooled[0 if direction == "forward" else 1]


def cell_grid(recording: Recording, cells: int = 3) -> tuple[int, int]:
    """Return the rows and columns of cells."""
    return min(cells, recording.grid[0]), min(cells, recording.grid[1])


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the products ``(..., K, K)`` of cells ``(..., K, d)``: rows of ``first``, columns of ``second``."""
    return first @ second.transpose(-1, -2)


def motion_strength(recording: Recording) -> Tensor:
    """Return the length of the motion features of each patch, ``(V, T, H, W)``, averaged over the existing directions.

    The first frame has no previous and the last no next frame.
    """
    length = recording.patches.norm(dim=-1)  # (2, V, T, P)
    count = torch.full((recording.num_frames, 1), 2.0)
    count[0] = count[-1] = 1.0
    return rearrange(length.sum(dim=0) / count, "v t (h w) -> v t h w", h=recording.grid[0])


# ---- attention ----


def attention_within(recording: Recording, video: int = -1) -> Tensor:
    """Return the attention within each frame of a video, ``(T, N, N)``: rows attend to columns, directions averaged."""
    tokens = recording.attended[:, video]
    return _attention(tokens, tokens)


def attention_across(recording: Recording, query: int = -1) -> Tensor:
    """Return the attention of a query to all support videos, ``(T, N, S, N)``, both directions averaged.

    It runs from the tokens of each query frame to those of the frame of the same index of every support video, with one
    softmax over all of them, as in C-MGA and Cmga. Without such an attention, the features of the motion are scaled
    to a mean square of 1 and compared in the same way.
    """
    tokens = recording.attended
    if recording.attention != "across":
        tokens = recording.motion / recording.motion.square().mean().sqrt().clamp_min(1e-12)
    keys = rearrange(tokens[:, : recording.num_support], "d s t n c -> d t (s n) c")
    attention = _attention(tokens[:, query], keys)
    return rearrange(attention, "t n (s m) -> t n s m", s=recording.num_support)


def _attention(queries: Tensor, keys: Tensor) -> Tensor:
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return scores.softmax(dim=-1).mean(dim=0)


def received_attention(recording: Recording, video: int = -1) -> Tensor:
    """Return the attention that each patch receives from the patches of its frame, ``(T, H, W)``, 1 on average."""
    first = recording.num_prefix_tokens
    maps = attention_within(recording, video)[:, first:, first:].mean(dim=1)
    maps = maps / maps.mean(dim=1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return rearrange(maps, "t (h w) -> t h w", h=recording.grid[0])


def looks(recording: Recording, query: int = -1) -> Tensor:
    """Return where a query looks, ``(S, T, H, W)``: its attention to each support patch, 1 for an even share.

    The rows of the attention are averaged: over the class token if only that reaches the features, else over patches.
    """
    first = recording.num_prefix_tokens
    maps = _query_rows(recording, query)[:, :, first:]
    total = recording.num_support * recording.attended.shape[3]
    return rearrange(maps * total, "t s (h w) -> s t h w", h=recording.grid[0])


def shares(recording: Recording, groups: Sequence[int], query: int = -1) -> Tensor:
    """Return the share of a query's attention that each group of support videos gets, ``(T, G)``, a sum of 1 per frame.

    Args:
        recording: of a task.
        groups: class of each support video, ``(S,)``, counted from 0.
        query: index of the query video.
    """
    videos = _query_rows(recording, query).sum(dim=-1)  # (T, S)
    members = functional.one_hot(torch.tensor(groups)).to(videos.dtype)
    return videos @ members


def _query_rows(recording: Recording, query: int) -> Tensor:
    """Return the average over rows of a query's attention, ``(T, S, N)``."""
    attention, first = attention_across(recording, query), recording.num_prefix_tokens
    rows = attention[:, :1] if recording.class_token_only else attention[:, first:]
    return rows.mean(dim=1)
