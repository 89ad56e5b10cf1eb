"""Frames in, frame features out, divided at the task boundary: ``encode`` per video, ``relate`` per task.

Up to the first task layer (a Cmga) everything is computed for each video alone; from there on the videos of one task
meet. Without a task layer ``encode`` goes to the end and nothing is left to relate.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import DmgalError
from .cnn import MapEncoder, find_cnn
from .finding import find_spec
from .layout import Layout
from .quick_gelu import use_quick_gelu
from .spec import BackboneSpec, base_model
from .task_layer import DividedTaskLayer, TaskLayer, task_layer_after
from .video_state import VideoState

Pooling = Literal["patch_mean", "cls+patch_mean", "map"]
POOLINGS = (None, "patch_mean", "cls+patch_mean", "map")


class FrameEncoder(nn.Module):
    """Wraps a backbone, PEFT-wrapped or not; adapters inside are found, none is needed.

    The backbone stays as it is, but for quick GELUs in its blocks: modules that give the same bits, and keep half as
    much for the way back, take their places (see ``quick_gelu``).

    Args:
        backbone: an image model whose spec is found (see ``find_spec``) or given.
        pooling: how a frame's tokens become its feature. ``None``: the backbone's own, projected where it projects;
            ``"patch_mean"``: mean of the normed patch tokens, projected; ``"cls+patch_mean"``: both, one after the
            other; ``"map"``: all patches as a map ``(C, H, W)``, normed, not projected.
        spec: where the backbone's parts are, if they are not found automatically.
        checkpoint_blocks: keep only what enters each block for the backward pass and compute the rest again, as
            gradient checkpointing does: less memory for a third more time.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        pooling: Pooling | None = None,
        spec: BackboneSpec | None = None,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise DmgalError(
                "Unknown pooling.",
                received=repr(pooling),
                expected=", ".join(map(repr, POOLINGS)),
                remedy="choose one of these; None is the backbone's own",
            )
        self.backbone = backbone
        self.pooling = pooling
        self.checkpoint_blocks = checkpoint_blocks
        self.spec = spec or find_spec(backbone)
        use_quick_gelu(self._blocks())
        self.register_buffer("mean", torch.tensor(self.spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.spec.std).view(3, 1, 1), persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the backbone takes."""
        return self.spec.image_size

    @property
    def width(self) -> int:
        """Channels ``C`` of the tokens and of the maps that ``pooling="map"`` gives."""
        return self.spec.width

    @property
    def feature_width(self) -> int:
        """Channels of what a head is given: ``D`` of the frame features, which may be projected, or ``C`` of maps."""
        num_tokens = self.spec.num_prefix_tokens + self.spec.grid[0] * self.spec.grid[1]
        weight = self._model.get_parameter(f"{self.spec.patch_embedding}.weight")
        with torch.no_grad():
            return self._pool(weight.new_zeros(1, 1, num_tokens, self.width)).shape[2]

    @property
    def first_task_block(self) -> int | None:
        """Index of the first block with an active task layer behind it."""
        return next((i for i, block in enumerate(self._blocks()) if task_layer_after(block)), None)

    @property
    def has_task_layer(self) -> bool:
        return self.first_task_block is not None

    def encode(self, videos: Tensor) -> VideoState:
        """Everything that belongs to each video alone.

        Args:
            videos: ``(V, T, 3, H, W)``; uint8 is normalized here, floating point is taken as normalized.

        Returns:
            ``{"features": (V, T, D)}`` without a task layer, else what its ``prepare`` returns.
        """
        num_frames = videos.shape[1]
        first = self.first_task_block
        tokens = self.spec.stem(self._model, self._normalize(videos.flatten(0, 1)))  # (V*T, N, C)
        if first is None:
            tokens = self._run(tokens, 0, self.spec.num_blocks, num_frames)
            return VideoState(features=self._pool(tokens.unflatten(0, (-1, num_frames))))
        tokens, layer = self._run_up_to_task_layer(tokens, 0, first, num_frames)
        return layer.prepare(tokens.unflatten(0, (-1, num_frames)), self._rows_after(first))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Frame features of one task, ``(S, T, D)`` and ``(Q, T, D)``: the first task layer and all after it."""
        index = self.first_task_block
        if index is None:
            return support["features"], query["features"]
        layer: TaskLayer | None = task_layer_after(self._blocks()[index])
        while layer is not None:
            tokens = layer.relate(support, query, self._rows_after(index))
            index, layer, (one, other) = self._to_next_task_layer(index, *tokens)
            tokens = one, other
            if layer is not None:
                support, query = (layer.prepare(part, self._rows_after(index)) for part in tokens)
        return self._pool(tokens[0]), self._pool(tokens[1])

    @property
    def has_divided_task_layers(self) -> bool:
        """Whether a support video is the same in every task, so that `support_side` and `relate_query` may be used."""
        layers = [layer for block in self._blocks() if (layer := task_layer_after(block)) is not None]
        return bool(layers) and all(hasattr(type(layer), "relate_query") for layer in layers)

    def support_side(self, state: VideoState) -> VideoState:
        """What support videos are to any query, from their state: all task layers and all after them.

        Returns:
            ``features (S, T, D)``, and of task layer ``i`` what queries attend to, under ``i.NAME``.
        """
        layer: DividedTaskLayer | None
        index, layer = self._first_divided()
        side, number = VideoState(), 0
        while layer is not None:
            tokens, attended = layer.support_side(state, self._rows_after(index))
            side |= {f"{number}.{name}": tensor for name, tensor in attended.items()}
            index, layer, (tokens,) = self._to_next_task_layer(index, tokens)
            if layer is not None:
                state, number = layer.prepare(tokens, self._rows_after(index)), number + 1
        return VideoState(side, features=self._pool(tokens))

    def query_side(self, state: VideoState) -> VideoState:
        """The part of a state that a query video needs of its own."""
        index, layer = self._first_divided()
        return layer.query_side(state, self._rows_after(index))

    def relate_query(
        self, support: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Frame features ``(E*Q, T, D)`` of the queries of ``E`` tasks of equal sizes; both sides come task after task.

        With `support_side`'s ``features`` this is what `relate` gives, up to rounding, at the queries' cost alone.
        Given ``places (E, S)``, ``support`` holds any videos, and the places say which of them are a task's support.
        """
        layer: DividedTaskLayer | None
        index, layer = self._first_divided()
        number = 0
        while layer is not None:
            prefix = f"{number}."
            attended = {name.removeprefix(prefix): t for name, t in support.items() if name.startswith(prefix)}
            tokens = layer.relate_query(VideoState(attended), query, num_tasks, places)
            index, layer, (tokens,) = self._to_next_task_layer(index, tokens)
            if layer is not None:
                rows, number = self._rows_after(index), number + 1
                query = layer.query_side(layer.prepare(tokens, rows), rows)
        return self._pool(tokens)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Frame features ``(S, T, D)``, ``(Q, T, D)`` of one task from its videos."""
        state = self.encode(torch.cat([support, query]))
        return self.relate(*state.split([len(support), len(query)]))

    def _to_next_task_layer(
        self, index: int, *parts: Tensor
    ) -> tuple[int, DividedTaskLayer | None, tuple[Tensor, ...]]:
        """Runs the blocks behind task layer ``index`` up to the next one, or to the end, on each part by itself."""
        blocks = self._blocks()
        later = next((i for i in range(index + 1, len(blocks)) if task_layer_after(blocks[i])), None)
        stop = len(blocks) if later is None else later
        results, layer = [], None
        for part in parts:
            num_frames, flat = part.shape[1], part.flatten(0, 1)  # (V*T, N, C)
            if later is None:
                flat = self._run(flat, index + 1, stop, num_frames)
            else:
                flat, layer = self._run_up_to_task_layer(flat, index + 1, later, num_frames)
            results.append(flat.unflatten(0, (-1, num_frames)))
        return stop, cast("DividedTaskLayer | None", layer), tuple(results)

    def _first_divided(self) -> tuple[int, DividedTaskLayer]:
        index = self.first_task_block
        assert index is not None, "asked for the sides of a task where no task layer is active"
        return index, cast(DividedTaskLayer, task_layer_after(self._blocks()[index]))

    def _run_up_to_task_layer(
        self, tokens: Tensor, start: int, index: int, num_frames: int
    ) -> tuple[Tensor, TaskLayer]:
        """Blocks ``start`` to ``index``, with all that hangs on the last but its task layer: the caller splits that."""
        layer = task_layer_after(self._blocks()[index])
        assert layer is not None
        tokens = self._run(tokens, start, index, num_frames)
        return self._run(tokens, index, index + 1, num_frames, aside=layer), layer

    def _run(self, tokens: Tensor, start: int, stop: int, num_frames: int, aside: TaskLayer | None = None) -> Tensor:
        """Tokens ``(V*T, N, C)`` through some blocks, without the task layer ``aside``."""
        if start == stop:
            return tokens
        tokens = tokens if self.spec.batch_first else tokens.transpose(0, 1)
        for block in self._blocks()[start:stop]:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                tokens = checkpoint(self._run_block, block, tokens, num_frames, aside, use_reentrant=False)
            else:
                tokens = self._run_block(block, tokens, num_frames, aside)
        return tokens if self.spec.batch_first else tokens.transpose(0, 1)

    def _run_block(self, block: nn.Module, tokens: Tensor, num_frames: int, aside: TaskLayer | None) -> Tensor:
        """Tells the layout by itself, because a checkpointed block runs again when the call around it is over."""
        with self._layout.of(num_frames=num_frames), aside.set_aside() if aside else nullcontext():
            return self.spec.run_block(self._model, block, tokens)

    def _rows_after(self, index: int) -> slice:
        """The tokens that are read behind block ``index``."""
        if index == self.spec.num_blocks - 1 and self.pooling is None and self.spec.pools_prefix:
            return slice(0, 1)
        return slice(None)

    def _pool(self, tokens: Tensor) -> Tensor:
        """Tokens ``(V, T, N, C)`` of the last block to frame features ``(V, T, D)`` or maps ``(V, T, C, H, W)``."""
        spec, model, (videos, frames) = self.spec, self._model, tokens.shape[:2]
        flat = tokens.flatten(0, 1)  # (V*T, N, C)
        if self.pooling is None:
            features = spec.project(model, spec.pool(model, flat))
        else:
            patches = spec.norm(model, flat)[:, spec.num_prefix_tokens :]  # (V*T, P, C)
            if self.pooling == "map":
                features = patches.transpose(1, 2).unflatten(2, spec.grid)  # (V*T, C, H, W)
            else:
                features = spec.project(model, patches.mean(1))
            if self.pooling == "cls+patch_mean":
                features = torch.cat([spec.project(model, spec.pool(model, flat)), features], dim=-1)
        return features.unflatten(0, (videos, frames))

    def _normalize(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        dtype = self._model.get_parameter(f"{self.spec.patch_embedding}.weight").dtype
        return ((images / 255 - self.mean) / self.std).to(dtype)

    @property
    def _model(self) -> nn.Module:
        return base_model(self.backbone)

    @property
    def _layout(self) -> Layout:
        return getattr(self._model, "dmgal_layout", None) or Layout()

    def _blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self._model.get_submodule(self.spec.blocks))


def make_encoder(
    backbone: nn.Module, pooling: Pooling | None = None, checkpoint_blocks: bool = False
) -> FrameEncoder | MapEncoder:
    """The encoder that fits a backbone: of tokens for a vision transformer, of maps for a convolutional network."""
    spec = find_cnn(backbone)
    if spec is None:
        return FrameEncoder(backbone, pooling, checkpoint_blocks=checkpoint_blocks)
    if checkpoint_blocks:
        raise DmgalError(
            "A convolutional backbone has no blocks to compute again.",
            received="checkpoint_blocks=True",
            expected="a vision transformer, or checkpoint_blocks=False",
            remedy="leave it out",
        )
    return MapEncoder(backbone, spec, "map" if pooling == "map" else None)
