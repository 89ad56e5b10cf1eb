"""Adapter layer of Smga- and Cmga-Adapters: after their block (an Smga optionally before), a Cmga as task layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec
from ..backbones.video_state import VideoState
from ..errors import DmgalError
from .cmga import CmgaAdapter
from .layer import AdapterLayer, cast_for
from .smga import SmgaAdapter

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
        return self.through(tokens, _apply_smga, _acts_before_block)

    def leave_block(self, tokens: Tensor) -> Tensor:
        return self.through(tokens, self._adapt, self._acts_after_block)

    def is_task_layer(self) -> bool:
        return self._active_cmga() is not None

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
        if isinstance(adapter, CmgaAdapter):
            return not self._cmga_is_set_aside
        return adapter.placement == "after"

    def active(self) -> list[tuple[str, Any]]:
        active = super().active()
        if len(active) > 1 and any(isinstance(adapter, CmgaAdapter) for _, adapter in active):
            raise DmgalError(
                "A Cmga-Adapter cannot share its block with another active motion adapter.",
                received=f"active adapters {self.active_adapters}",
                expected="one active motion adapter after this block",
                remedy="Activate one by set_adapter, or inject them after different blocks.",
            )
        return active

    def _active_cmga(self) -> CmgaAdapter | None:
        return next((adapter for _, adapter in self.active() if isinstance(adapter, CmgaAdapter)), None)

    def _cmga(self) -> CmgaAdapter:
        adapter = self._active_cmga()
        assert adapter is not None, "no Cmga is active"
        return adapter

    def _num_support(self, num_videos: int) -> int:
        num_support = self.layout.num_support
        if num_support is None or not 0 < num_support <= num_videos:
            raise DmgalError(
                "A Cmga-Adapter needs the number of support videos.",
                received=f"num_support={num_support} with {num_videos} videos",
                expected=f"a number from 1 to {num_videos}; the support videos come first",
                remedy="Pass num_support=... with the call, or use encode and relate of FrameEncoder.",
            )
        return num_support


def _apply_smga(adapter: SmgaAdapter, tokens: Tensor) -> Tensor:
    return adapter(tokens)


def _acts_before_block(adapter: MotionAdapter) -> bool:
    return isinstance(adapter, SmgaAdapter) and adapter.placement == "before"
