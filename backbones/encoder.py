"""Encoder from frames to frame features, split at the task boundary: ``encode`` per video, ``relate`` per task.

Up to the first task layer (a Cmga), each video is computed independently. From there on, the videos of one task
interact. Without a task layer, ``encode`` computes the features and ``relate`` has no work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, repeat
from typing import Literal, NamedTuple, Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import DmgalError
from .families import find_spec
from .probing import evaluating
from .recomputation import AdapterSettings, adapted_modules, frozen_statistics, saves_all
from .spec import BackboneSpec, base_model
from .state import DividedTaskLayer, Layout, TaskLayer, VideoState, mixed_batch, task_layer_after

Pooling = Literal["patch_mean", "cls+patch_mean", "map"]
POOLINGS: tuple[Pooling | None, ...] = (None, "patch_mean", "cls+patch_mean", "map")


class BlockInput(NamedTuple):
    """The point of an encoding before a block: the block's index and its input tokens ``(V, T, N, C)``.

    If no adapter changes a token before the last block, ``outputs`` may have the outputs of blocks, by their index. No
    block then runs: the adapters read these.
    """

    block: int
    tokens: Tensor
    outputs: Mapping[int, Tensor] | None = None


class Starts(Protocol):
    """A source of points to encode videos from, such as a `FrameMemory`."""

    def start(self, videos: Tensor) -> BlockInput:
        """Return the point at a block before the first adapter, for videos ``(V, T, 3, H, W)``."""


class FrameEncoder(nn.Module):
    """An encoder around a backbone, which may be wrapped by PEFT and may contain adapters.

    The encoder does not modify the backbone. To train with CLIP's QuickGELU in less memory, pass
    ``use_memory_efficient_gelu(backbone)``.

    Args:
        backbone: a vision transformer, a hierarchical or convolutional network, or a backbone of videos.
        pooling: how a frame's tokens become its feature. ``None``: the backbone's own pooling and projection, if it
            has one. ``"patch_mean"``: projected mean of the normed patch tokens. ``"cls+patch_mean"``: both,
            concatenated. ``"map"``: all patches as a map ``(C, H, W)``, normed, not projected.
        spec: the parts of the backbone, by default as found by ``find_spec``.
        checkpoint_blocks: use gradient checkpointing: save only the input of each block for backward and recompute
            the rest. This needs less memory and a third more time.
    """

    mean: Tensor
    std: Tensor
    frame_memory: Starts | None = None
    """Where the encoding of videos starts, instead of `embed`."""

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
                remedy="Choose one of these. None is the backbone's own pooling.",
            )
        self.backbone = backbone
        self.pooling = pooling
        self.checkpoint_blocks = checkpoint_blocks
        self.spec = spec or find_spec(backbone, store=False)
        self.register_buffer("mean", torch.tensor(self.spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.spec.std).view(3, 1, 1), persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the backbone's input images."""
        return self.spec.image_size

    @property
    def width(self) -> int:
        """Number of channels ``C`` of the tokens and of the maps of ``pooling="map"``."""
        return self.spec.width

    @property
    def feature_width(self) -> int:
        """Number of channels that a head receives: ``D`` of (projected) frame features, or ``C`` of maps."""
        num_tokens = self.spec.num_prefix_tokens + self.spec.grid[0] * self.spec.grid[1]
        weight = self._model.get_parameter(f"{self.spec.patch_embedding}.weight")
        with torch.no_grad(), evaluating(self._model):
            return self._pool(weight.new_zeros(1, 1, num_tokens, self.width)).shape[2]

    @property
    def first_task_block(self) -> int | None:
        """Index of the first block with an active task layer after it, or None."""
        return next((i for i, block in enumerate(self._blocks()) if task_layer_after(block)), None)

    @property
    def has_task_layer(self) -> bool:
        """True if an adapter relates the videos of a task."""
        return self.first_task_block is not None

    @property
    def first_adapted_block(self) -> int | None:
        """Index of the first block with an adapter, active or not, or None if a part outside the blocks has one."""
        per_block = [len(adapted_modules(block)) for block in self._blocks()]
        if sum(per_block) < len(adapted_modules(self._model)):
            return None
        return next((index for index, count in enumerate(per_block) if count), self.spec.num_blocks)

    def encode(
        self, videos: Tensor, start: BlockInput | None = None, adapter_names: Sequence[str] | None = None
    ) -> VideoState:
        """Compute the part of the features that depends on each video alone.

        Args:
            videos: ``(V, T, 3, H, W)``. uint8 is normalized here. Floating-point videos have to be normalized.
            start: the point of these videos' encoding to resume from, by default their `start`.
            adapter_names: the adapter of each video, as in PEFT's mixed batches. None: the active ones.

        Returns:
            ``{"features": (V, T, D)}`` without a task layer, else the result of the task layer's ``prepare``.
        """
        if adapter_names is not None:
            with mixed_batch(self.backbone, adapter_names, 1 if self.spec.clip_frames else videos.shape[1]):
                return self.encode(videos, start)
        start = self.start(videos) if start is None else start
        num_frames, first = start.tokens.shape[1], self.first_task_block
        if first is None:
            return VideoState(features=self._pool(self.advance(start, self.spec.num_blocks).tokens))
        tokens = rearrange(start.tokens, "v t n c -> (v t) n c")
        tokens, layer = self._run_up_to_task_layer(tokens, start.block, first, num_frames)
        return layer.prepare(rearrange(tokens, "(v t) n c -> v t n c", t=num_frames), self._rows_after(first))

    def start(self, videos: Tensor) -> BlockInput:
        """Return the point where the encoding of videos starts: their `embed`, or what ``frame_memory`` holds."""
        return self.embed(videos) if self.frame_memory is None else self.frame_memory.start(videos)

    def embed(self, videos: Tensor) -> BlockInput:
        """Return the input of the first block for videos ``(V, T, 3, H, W)``, as in `encode`."""
        grid = self.pooling == "map" or hasattr(self._model, "dmgal_layout")
        self.spec.check_image_size(videos.shape[-2:], positions=True, grid=grid)
        images = self._normalize(rearrange(videos, "v t c h w -> (v t) c h w"))
        steps = self.spec.num_steps(videos.shape[1])
        tokens = self.spec.stem(self._model, images)
        return BlockInput(0, rearrange(tokens, "(v t) n c -> v t n c", t=steps))

    def advance(self, start: BlockInput, block: int) -> BlockInput:
        """Run the blocks before ``block``, which is not after the first task layer's block, and return its input."""
        num_frames = start.tokens.shape[1]
        if start.outputs is None:
            tokens = self._run(rearrange(start.tokens, "v t n c -> (v t) n c"), start.block, block, num_frames)
        else:
            tokens = self._read(start.outputs, block, num_frames)
        return BlockInput(block, rearrange(tokens, "(v t) n c -> v t n c", t=num_frames))

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """Return frame features ``(S, T, D)`` and ``(Q, T, D)`` of one task, from the first task layer on."""
        index = self.first_task_block
        if index is None:
            return support["features"], query["features"]
        layer: TaskLayer | None = task_layer_after(self._blocks()[index])
        while layer is not None:
            tokens = layer.relate(support, query, self._rows_after(index))
            index, layer, (support_tokens, query_tokens) = self._to_next_task_layer(index, *tokens)
            tokens = support_tokens, query_tokens
            if layer is not None:
                support, query = (layer.prepare(part, self._rows_after(index)) for part in tokens)
        return self._pool(tokens[0]), self._pool(tokens[1])

    @property
    def has_divided_task_layers(self) -> bool:
        """True if support videos do not depend on their task, as `support_side` and `relate_query` require."""
        layers = [layer for block in self._blocks() if (layer := task_layer_after(block)) is not None]
        return bool(layers) and all(hasattr(type(layer), "relate_query") for layer in layers)

    def support_side(self, state: VideoState) -> tuple[Tensor, tuple[VideoState, ...]]:
        """Return the features ``(S, T, D)`` of support videos, and what queries attend to in each task layer."""
        layer: DividedTaskLayer | None
        index, layer = self._first_divided()
        attended = []
        while layer is not None:
            tokens, attended_here = layer.support_side(state, self._rows_after(index))
            attended.append(attended_here)
            index, layer, (tokens,) = self._to_next_task_layer(index, tokens)
            if layer is not None:
                state = layer.prepare(tokens, self._rows_after(index))
        return self._pool(tokens), tuple(attended)

    def query_side(self, state: VideoState) -> VideoState:
        """Return the query state of videos: the entries of their state that they need as queries."""
        index, layer = self._first_divided()
        return layer.query_side(state, self._rows_after(index))

    def relate_query(
        self, attended: Sequence[VideoState], query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        """Return frame features ``(E*Q, T, D)`` of the queries of ``E`` tasks of equal sizes, task after task.

        Together with the features of `support_side`, the result equals that of `relate` up to rounding, at the cost of
        the queries alone.

        Args:
            attended: what queries attend to in each task layer, of ``E*S`` videos, or of any videos if ``places`` is
                given. Layers without attention may be missing at the end.
            query: query states of ``E*Q`` videos, from `query_side`.
            num_tasks: the number of tasks ``E``.
            places: ``(E, S)``, indices of each task's support videos in ``attended``.
        """
        layer: DividedTaskLayer | None
        index, layer = self._first_divided()
        remaining = chain(attended, repeat(VideoState()))
        while layer is not None:
            tokens = layer.relate_query(next(remaining), query, num_tasks, places)
            index, layer, (tokens,) = self._to_next_task_layer(index, tokens)
            if layer is not None:
                rows = self._rows_after(index)
                query = layer.query_side(layer.prepare(tokens, rows), rows)
        return self._pool(tokens)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return frame features ``(S, T, D)`` and ``(Q, T, D)`` of one task from its videos."""
        state = self.encode(torch.cat([support, query]))
        return self.relate(*state.split([len(support), len(query)]))

    def _to_next_task_layer(
        self, index: int, *parts: Tensor
    ) -> tuple[int, DividedTaskLayer | None, tuple[Tensor, ...]]:
        """Run the blocks after task layer ``index`` up to the next task layer or the end, on each part separately."""
        blocks = self._blocks()
        next_index = next((i for i in range(index + 1, len(blocks)) if task_layer_after(blocks[i])), None)
        stop = len(blocks) if next_index is None else next_index
        self._layout.carried.clear()  # it is that of other videos
        results, layer = [], None
        for part in parts:
            num_frames = part.shape[1]
            flat = rearrange(part, "v t n c -> (v t) n c")
            if next_index is None:
                flat = self._run(flat, index + 1, stop, num_frames)
            else:
                flat, layer = self._run_up_to_task_layer(flat, index + 1, next_index, num_frames)
            results.append(rearrange(flat, "(v t) n c -> v t n c", t=num_frames))
        return stop, cast("DividedTaskLayer | None", layer), tuple(results)

    def _first_divided(self) -> tuple[int, DividedTaskLayer]:
        index = self.first_task_block
        assert index is not None, "support and query states require an active task layer"
        return index, cast(DividedTaskLayer, task_layer_after(self._blocks()[index]))

    def _run_up_to_task_layer(
        self, tokens: Tensor, start: int, index: int, num_frames: int
    ) -> tuple[Tensor, TaskLayer]:
        """Run blocks ``start`` to ``index`` and all adapters of the last one, except its task layer.

        The caller splits that layer into ``prepare`` and ``relate``.
        """
        layer = task_layer_after(self._blocks()[index])
        assert layer is not None
        tokens = self._run(tokens, start, index, num_frames)
        return self._run(tokens, index, index + 1, num_frames, layer), layer

    def _read(self, outputs: Mapping[int, Tensor], stop: int, num_frames: int) -> Tensor:
        """Let adapters read the known outputs of the blocks before ``stop``. Return ``(V*T, N, C)`` after the last."""
        with self._layout.of(num_frames=num_frames):
            for index, block in enumerate(self._blocks()[:stop]):
                if index in outputs:
                    tokens = self.spec.exit.native(rearrange(outputs[index], "v t n c -> (v t) n c"))
                    for layer in adapted_modules(block):
                        tokens = layer.leave_block(tokens)
        return self.spec.exit.tokens(tokens)

    def _run(self, tokens: Tensor, start: int, stop: int, num_frames: int, aside: TaskLayer | None = None) -> Tensor:
        """Run blocks ``start`` to ``stop - 1`` on tokens ``(V*T, N, C)``, without the task layer ``aside``."""
        if start == stop:
            return tokens
        tokens = self.spec.shape_between(start).native(tokens)
        for block in self._blocks()[start:stop]:
            if self.checkpoint_blocks and torch.is_grad_enabled() and not saves_all(block):
                settings = AdapterSettings(block)
                tokens = checkpoint(self._run_again, settings, block, tokens, num_frames, aside, use_reentrant=False)
            else:
                tokens = self._run_block(block, tokens, num_frames, aside)
        return self.spec.shape_between(stop).tokens(tokens)

    def _run_block(self, block: nn.Module, tokens: Tensor, num_frames: int, aside: TaskLayer | None) -> Tensor:
        """Run one block. It sets the layout itself, because a checkpointed block runs again after the outer call."""
        with self._layout.of(num_frames=num_frames), aside.set_aside() if aside else nullcontext():
            return self.spec.run_block(self._model, block, tokens)

    def _run_again(
        self, settings: AdapterSettings, block: nn.Module, tokens: Tensor, num_frames: int, aside: TaskLayer | None
    ) -> Tensor:
        """Run one block with the adapters of the forward pass, also if others are active in the backward pass."""
        is_again = torch._C._current_graph_task_id() != -1  # -1 outside a backward pass
        with settings.applied(), frozen_statistics(block) if is_again else nullcontext():
            return self._run_block(block, tokens, num_frames, aside)

    def _rows_after(self, index: int) -> slice:
        """Return the rows of tokens that are used after block ``index``."""
        if index == self.spec.num_blocks - 1 and self.pooling is None and self.spec.pools_prefix:
            return slice(0, 1)
        return slice(None)

    def _pool(self, tokens: Tensor) -> Tensor:
        """Turn the last block's tokens ``(V, T, N, C)`` into features ``(V, T, D)`` or maps ``(V, T, C, H, W)``."""
        spec, model, num_frames = self.spec, self._model, tokens.shape[1]
        flat = rearrange(tokens, "v t n c -> (v t) n c")
        if self.pooling is None:
            features = spec.project(model, spec.pool(model, flat))
        else:
            patches = spec.norm(model, flat)[:, spec.num_prefix_tokens :]
            if self.pooling == "map":
                rows, columns = spec.grid
                features = rearrange(patches, "b (h w) c -> b c h w", h=rows, w=columns)
            else:
                features = spec.project(model, patches.mean(1))
            if self.pooling == "cls+patch_mean":
                features = torch.cat([spec.project(model, spec.pool(model, flat)), features], dim=-1)
        return rearrange(features, "(v t) ... -> v t ...", t=num_frames)

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

    def _blocks(self) -> Sequence[nn.Module]:
        if self.spec.sides:
            return [self._model.get_submodule(name) for name in self.spec.block_names()]
        return cast(Sequence[nn.Module], self._model.get_submodule(self.spec.blocks))
