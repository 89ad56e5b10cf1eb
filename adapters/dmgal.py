"""DMGAL-Adapter (arXiv 2411.11335): motion-guided attention in a bottleneck, within a video and across a task.

The paper gives no equations and no code of its adapters is public, so both are our reconstruction, on the motion
features of ``motion``. With ``h = GELU(down(x) + temporal)``, motion ``f, g`` of width ``d``, ``values = dw(h)`` and
``A(q, k) = (softmax(q_f k_f^T / sqrt(d)) + softmax(q_g k_g^T / sqrt(d))) / 2``, both return ``x + up(y)``:

    Smga:           y = h + signed(f, g) + A(m, m) @ values           m = (f, g), over the tokens of a frame
    Cmga, support:  y = h + signed(f, g) + values
    Cmga, query:    y = h + signed(f, g) + values + A(LN m_q, LN m_s) @ values_s

The softmax of a Cmga runs over all tokens of the same frame of all support videos. Queries do not affect each other.
Only its last term depends on the task. The rest is computed once per video and may be cached.

PEFT takes one type per injection. One type therefore holds both: Smga at some blocks, a Cmga as task layer after
others. ``SmgaConfig`` and ``CmgaConfig`` have only one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from ..backbones.shape import BlockShape
from ..backbones.spec import BackboneSpec
from ..backbones.state import Layout, VideoState
from ..errors import DmgalError
from .autograd import recomputed, residual_bottleneck
from .base import BlockAdapterConfig, options_of
from .layer import AdapterLayer, cast_for
from .motion import BottleneckShape, Directions, Motion, MotionBottleneck, Placement, Scales, motion_attention
from .tuner import BlockTuner

MOST_PATCHES = 32 * 32
"""Patches of a map up to which every block gets an Smga by default. The map of its attention has their square."""


@dataclass
class DmgalConfig(BlockAdapterConfig):
    """Smga-Adapters at all blocks but the last, a Cmga-Adapter after the last (our reconstruction of the paper).

    Args:
        smga_blocks: indices of the blocks with an Smga, negative ones counting from the end. None: all without a Cmga,
            in a backbone in stages those with at most ``MOST_PATCHES`` patches.
        cmga_blocks: indices of the blocks with a Cmga. None: the last block.
        bottleneck: width ``a`` of the adapter. None: a quarter of the block's width.
        motion_width: width ``d`` of the motion features. None: ``max(8, width / 32)``. Keep it at or under ``a / 4``.
        scales: ``"single"``, or ``"multi"`` for motion at three resolutions.
        attention: use attention over motion, the paper's core.
        signed: use motion itself as a value, with separate weights for each direction (ours).
        temporal: add a learned code to each frame (ours).
        directions: ``"shared"`` if both directions of motion read the same features (the paper), ``"separate"`` if
            each has its own (ours). ``"forward"`` or ``"backward"`` uses one direction in place of both.
        smga_placement: ``"after"`` or ``"before"`` the block. A Cmga always acts after its block.

    ``BlockAdapterConfig`` documents the other options.
    """

    smga_blocks: list[int] | None = None
    cmga_blocks: list[int] | None = None
    bottleneck: int | None = None
    motion_width: int | None = None
    scales: Scales = "single"
    attention: bool = True
    signed: bool = True
    temporal: bool = True
    directions: Directions = "shared"
    smga_placement: Placement = "after"

    kind: ClassVar[str] = "DMGAL"
    title: ClassVar[str] = (
        "DMGAL-Adapter (arXiv 2411.11335). The equations of its Smga- and Cmga-Adapters are **our reconstruction**: "
        "the paper gives none and no code of them is public"
    )
    chosen_by: ClassVar[str] = "smga_blocks and cmga_blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)
        self.check_whole_number("motion_width", 1)
        self.check_choice("scales", ("single", "multi"))
        self.check_choice("directions", get_args(Directions))
        self.check_choice("smga_placement", ("after", "before"))
        for name in ("attention", "signed", "temporal"):
            if not isinstance(getattr(self, name), bool):
                raise self.wrong(name, "True or False")

    def complete(self, spec: BackboneSpec) -> None:
        depth = spec.num_blocks
        cmga = [depth - 1] if self.cmga_blocks is None else self.block_indices("cmga_blocks", depth)
        rest = [index for index in range(depth) if index not in cmga and _is_default(spec, index)]
        smga = rest if self.smga_blocks is None else self.block_indices("smga_blocks", depth)
        both = sorted(set(smga) & set(cmga))
        if both or not smga + cmga:
            raise DmgalError(
                "The lists of Smga and Cmga blocks are not valid.",
                received=f"smga_blocks={self.smga_blocks}, cmga_blocks={self.cmga_blocks}",
                expected="at least one block, and no block in both lists",
                remedy=f"Remove {both} from one list." if both else "Name a block in one of the lists.",
            )
        self.smga_blocks, self.cmga_blocks = smga, cmga
        if not spec.sides:
            self.bottleneck, self.motion_width = self._widths(spec.width)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        spec = spec.of_block(block)
        if block in (self.cmga_blocks or ()):
            return CmgaAdapter(self._shape(spec.exit))
        if block not in (self.smga_blocks or ()):
            return None
        tokens = spec.exit if self.smga_placement == "after" else spec.entry
        return SmgaAdapter(self._shape(tokens), self.smga_placement)

    def _widths(self, width: int) -> tuple[int, int]:
        return self.bottleneck or max(1, width // 4), self.motion_width or max(8, width // 32)

    def _shape(self, tokens: BlockShape) -> BottleneckShape:
        bottleneck, motion_width = self._widths(tokens.width)
        return BottleneckShape(
            width=tokens.width,
            bottleneck=bottleneck,
            motion_width=motion_width,
            num_prefix_tokens=tokens.num_prefix_tokens,
            grid=tokens.grid,
            **options_of(self, ("num_frames", "scales", "attention", "signed", "temporal", "directions")),
        )


@dataclass
class SmgaConfig(DmgalConfig):
    """Config of Smga-Adapters alone. ``smga_blocks=None`` means every block."""

    cmga_blocks: list[int] | None = field(default_factory=list)


@dataclass
class CmgaConfig(DmgalConfig):
    """Config of Cmga-Adapters alone. ``cmga_blocks=None`` means the last block."""

    smga_blocks: list[int] | None = field(default_factory=list)


_RECONSTRUCTIBLE_DTYPES = (torch.float32, torch.float64)
"""Dtypes precise enough to reconstruct the input from the output in the backward pass."""


class SmgaAdapter(MotionBottleneck):
    """Smga-Adapter of one block, which handles each video alone."""

    def __init__(self, shape: BottleneckShape, placement: Placement = "after") -> None:
        super().__init__(shape, reads_values=shape.attention)
        self.placement = placement

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(V, T, N, C)`` to the same shape."""
        self.check(tokens)
        parameters = [p for name, p in self.named_parameters() if not name.startswith(("down.", "up."))]
        # A LoRA on `down` or `up` may have dropout, so that a recomputation would differ.
        has_plain_linears = type(self.down) is type(self.up) is nn.Linear
        if tokens.dtype in _RECONSTRUCTIBLE_DTYPES and has_plain_linears:
            return residual_bottleneck(tokens, self.down, self._between, self.up, parameters)
        return self.back(recomputed(self._between, self.down(tokens), parameters), tokens)

    def _between(self, reduced: Tensor) -> Tensor:
        """Map the output of ``down`` to the input of ``up``, ``(V, T, N, a)``."""
        hidden = self.activated(reduced)
        result = hidden
        if self.shape.reads_motion:
            motion = self.motion(hidden)
            result = result + self.signed_values(motion)
            if self.shape.attention:
                result = result + motion_attention(motion, motion, self.values(hidden))
        return result

    @staticmethod
    def attention_tokens(motion: Motion) -> Motion:
        """Return the tokens ``(V, T, N, d)`` whose products are the attention: the motion itself."""
        return motion


class CmgaAdapter(MotionBottleneck):
    """A Cmga, split at the task boundary into ``prepare`` (per video) and ``relate`` (per task).

    The support half of ``relate`` depends on each video alone, too. Only ``relate_query`` depends on the task.
    """

    placement: ClassVar[Placement] = "after"

    def __init__(self, shape: BottleneckShape) -> None:
        super().__init__(shape, reads_values=True)
        if shape.attention:
            self.normalization = nn.LayerNorm(shape.motion_width)

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        """Compute the per-video state of tokens ``(V, T, N, C)``, of which later layers read the ``R`` in ``rows``.

        It has ``tokens (V, T, R, C)`` and ``hidden (V, T, R, a)``, the per-video part of the result. With attention
        also ``forward`` and ``backward (V, T, N, d)`` and ``values (V, T, N, a)``, its queries or keys and values.
        """
        hidden = self.hidden(tokens)
        motion = self.motion(hidden) if self.shape.reads_motion else None
        values = self.values(hidden)
        result = hidden + (self.signed_values(motion) if motion else 0.0) + values
        attended = VideoState()
        if motion and self.shape.attention:
            attended = VideoState(zip(Motion._fields, self.attention_tokens(motion), strict=True), values=values)
        return VideoState(tokens=tokens[:, :, rows], hidden=result[:, :, rows], **attended)

    def attention_tokens(self, motion: Motion) -> Motion:
        """Return the tokens ``(V, T, N, d)`` whose products are the attention: motion after the layer norm."""
        return Motion(*map(self.normalization, motion))

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
                at = rearrange(places, "e s -> (e s)")
                frame = {name: tensor[at].to(query["hidden"]) for name, tensor in frame.items()}
            keys = Motion(*(_by_task(frame[name], num_tasks) for name in Motion._fields))  # (E, S*N, d)
            queries = Motion(*(_by_task(query[name][:, t], num_tasks) for name in Motion._fields))  # (E, Q*R, d)
            cross = motion_attention(queries, keys, _by_task(frame["values"], num_tasks))  # (E, Q*R, a)
            frames.append(cross.flatten(0, -2).unflatten(0, (-1, rows)))  # (E*Q, R, a); one task has no axis E
        return torch.stack(frames, dim=1)


def _by_task(tokens: Tensor, num_tasks: int) -> Tensor:
    """Merge the tokens of each task, ``(E*V, N, c)`` to ``(E, V*N, c)``; for a single task to ``(V*N, c)``."""
    merged = rearrange(tokens, "(e v) n c -> e (v n) c", e=num_tasks)
    return merged[0] if num_tasks == 1 else merged


MotionAdapter = SmgaAdapter | CmgaAdapter


class MotionLayer(AdapterLayer):
    """Motion adapters of one block. The ``DividedTaskLayer`` protocol is in effect while a Cmga is active."""

    rank = 2  # last, as FrameEncoder runs a task layer after the other adapters
    child = "motion"
    prefix = "dmgal_"

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        super().__init__(block, layout, spec)
        self._cmga_is_set_aside = False

    def enter_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens, acts=_acts_before_block, shape=self.spec.entry)

    def leave_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens, self._adapt, self._acts_after_block)

    def is_task_layer(self) -> bool:
        return self._cmga() is not None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        self._cmga_is_set_aside = True
        try:
            yield
        finally:
            self._cmga_is_set_aside = False

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        adapter = self._cmga()
        return adapter.prepare(cast_for(adapter, tokens), rows)

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        related = self._cmga().relate(support, query, rows)
        return self._as_block(related[0]), self._as_block(related[1])

    def support_side(self, state: VideoState, rows: slice) -> tuple[Tensor, VideoState]:
        tokens, attended = self._cmga().support_side(state)
        return self._as_block(tokens), attended

    def query_side(self, state: VideoState, rows: slice) -> VideoState:
        return self._cmga().query_side(state, rows)

    def relate_query(
        self, attended: VideoState, query: VideoState, num_tasks: int = 1, places: Tensor | None = None
    ) -> Tensor:
        return self._as_block(self._cmga().relate_query(attended, query, num_tasks, places))

    def _as_block(self, tokens: Tensor) -> Tensor:
        """Cast tokens to the dtype of the block, which may differ from that of the adapter."""
        return tokens.to(next(p.dtype for p in self.block.parameters() if p.is_floating_point()))

    def _adapt(self, adapter: MotionAdapter, tokens: Tensor) -> Tensor:
        if isinstance(adapter, CmgaAdapter):
            return adapter(tokens, self._num_support(len(tokens)))
        return adapter(tokens)

    def _acts_after_block(self, adapter: MotionAdapter) -> bool:
        is_set_aside = self._cmga_is_set_aside and isinstance(adapter, CmgaAdapter)
        return adapter.placement == "after" and not is_set_aside

    def active(self) -> list[tuple[str, Any]]:
        active = super().active()
        if len(active) > 1 and self._mixture is None and any(isinstance(adapter, CmgaAdapter) for _, adapter in active):
            raise DmgalError(
                "A Cmga-Adapter cannot share its block with another active motion adapter.",
                received=f"active adapters {self.active_adapters}",
                expected="one active motion adapter after this block",
                remedy="Activate one by set_adapter, or inject them after different blocks.",
            )
        return active

    def _cmga(self) -> Any:
        """Return the active Cmga, or None."""
        active = next((adapter for _, adapter in self.active() if isinstance(adapter, CmgaAdapter)), None)
        if active is not None and self._mixture is not None:
            raise DmgalError(
                "FrameEncoder cannot mix adapters of which one relates the videos of a task.",
                received=f"adapter_names with a Cmga-Adapter: {list(self._mixture)}",
                expected="adapters without a Cmga, such as SmgaConfig()",
                remedy="Call the model itself with num_support, or encode the videos of each adapter separately.",
            )
        return active

    def _num_support(self, num_videos: int) -> int:
        """Return the number of support videos among those of the adapter. In a mixed batch each has its own task."""
        num_support = self.layout.num_support
        if num_support is not None and self._selected is not None:
            num_support = int((self._selected < num_support).sum())
        if num_support is None or not 0 < num_support <= num_videos:
            raise DmgalError(
                "A Cmga-Adapter needs the number of support videos.",
                received=f"num_support={num_support} with {num_videos} videos",
                expected=f"a number from 1 to {num_videos}; the support videos come first",
                remedy="Pass num_support=... with the call, or use encode and relate of FrameEncoder.",
            )
        return num_support


def _is_default(spec: BackboneSpec, index: int) -> bool:
    """Return False for a block of a backbone in stages in which a frame has too many patches for attention."""
    rows, columns = spec.of_block(index).exit.grid
    return not spec.sides or rows * columns <= MOST_PATCHES


def _acts_before_block(adapter: MotionAdapter) -> bool:
    return adapter.placement == "before"


class DmgalModel(BlockTuner):
    """The tuner of ``DmgalConfig``."""

    tuner_layer_cls = MotionLayer
