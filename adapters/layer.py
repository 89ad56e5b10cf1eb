"""The adapters behind one block: a child module of the block plus a forward hook, never a wrapper.

Because the block stays itself, its name and type stay, LoRA can be added to its linear layers before or after, and
``unload`` leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..backbones.layout import Layout
from ..backbones.video_state import VideoState
from ..errors import DmgalError
from .cmga import CmgaAdapter
from .smga import SmgaAdapter

CHILD = "motion"
"""Name of the child. PEFT's ``delete_adapter`` passes over names that contain the prefix below, so it must not."""
PREFIX = "dmgal_"


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Holds the adapters of one block by name and applies the active ones to what the block returns."""

    adapter_layer_names = (f"{PREFIX}adapter",)

    def __init__(self, block: nn.Module, layout: Layout, batch_first: bool) -> None:
        super().__init__()
        self._block = (block,)  # in a tuple, so that the block does not become a child of its own child
        self.layout = layout
        self.batch_first = batch_first
        self.dmgal_adapter = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self._set_aside = False
        self._handle = block.register_forward_hook(self._hook, prepend=True)

    @property
    def weight(self) -> Tensor:
        raise AttributeError("an adapter behind a block has no base weight")

    @property
    def bias(self) -> Tensor:
        raise AttributeError("an adapter behind a block has no base bias")

    def get_base_layer(self) -> nn.Module:
        return self._block[0]

    def remove(self) -> None:
        """Takes the layer off its block again."""
        self._handle.remove()
        del self._block[0]._modules[CHILD]

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(V*T, N, C)`` as the block returned them, to the same shape."""
        for adapter in self._active():
            if not (self._set_aside and isinstance(adapter, CmgaAdapter)):
                tokens = self._adapted(adapter, tokens)
        return tokens

    def is_task_layer(self) -> bool:
        return self._active_cmga() is not None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        self._set_aside = True
        try:
            yield
        finally:
            self._set_aside = False

    def prepare(self, tokens: Tensor, rows: slice) -> VideoState:
        adapter = self._cmga()
        self._check_frames(adapter, tokens.shape[1])
        return adapter.prepare(_cast(tokens, adapter), rows)

    def relate(self, support: VideoState, query: VideoState, rows: slice) -> tuple[Tensor, Tensor]:
        related = self._cmga().relate(support, query, rows)
        dtype = next(p.dtype for p in self._block[0].parameters() if p.is_floating_point())
        return related[0].to(dtype), related[1].to(dtype)

    def _hook(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._batch_first(output[0]), *output[1:])
        return self._batch_first(output)

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return self(tokens) if self.batch_first else self(tokens.transpose(0, 1)).transpose(0, 1)

    def _adapted(self, adapter: SmgaAdapter | CmgaAdapter, tokens: Tensor) -> Tensor:
        videos = self.layout.videos(tokens, adapter.shape.num_frames)  # (V, T, N, C)
        self._check_frames(adapter, videos.shape[1])
        inputs = _cast(videos, adapter)
        if isinstance(adapter, CmgaAdapter):
            result = adapter(inputs, self._num_support(len(videos)))
        else:
            result = adapter(inputs)
        return result.flatten(0, 1).to(tokens.dtype)

    def _active(self) -> list[SmgaAdapter | CmgaAdapter]:
        if self.disable_adapters:
            return []
        adapters: Any = self.dmgal_adapter
        active = [adapters[name] for name in self.active_adapters if name in adapters]
        if len(active) > 1 and any(isinstance(adapter, CmgaAdapter) for adapter in active):
            raise DmgalError(
                "A Cmga-Adapter cannot share its block with another active motion adapter.",
                received=f"active adapters {self.active_adapters}",
                expected="one active motion adapter behind this block",
                remedy="activate one by set_adapter, or place them behind different blocks",
            )
        return active

    def _active_cmga(self) -> CmgaAdapter | None:
        return next((adapter for adapter in self._active() if isinstance(adapter, CmgaAdapter)), None)

    def _cmga(self) -> CmgaAdapter:
        adapter = self._active_cmga()
        assert adapter is not None, "asked to relate videos while no Cmga is active"
        return adapter

    def _num_support(self, num_videos: int) -> int:
        num_support = self.layout.num_support
        if num_support is None or not 0 < num_support <= num_videos:
            raise DmgalError(
                "A Cmga-Adapter relates query videos to support videos and has to know which are which.",
                received=f"num_support={num_support} with {num_videos} videos",
                expected=f"a number from 1 to {num_videos}; the support videos come first",
                remedy="pass num_support=... with the call, or use FrameEncoder's encode and relate",
            )
        return num_support

    @staticmethod
    def _check_frames(adapter: SmgaAdapter | CmgaAdapter, num_frames: int) -> None:
        shape = adapter.shape
        if shape.temporal and num_frames != shape.num_frames:
            raise DmgalError(
                "An adapter with a temporal code takes videos of one length only.",
                received=f"{num_frames} frames a video",
                expected=f"{shape.num_frames}, as it was made (num_frames of its DmgalConfig)",
                remedy=f"sample {shape.num_frames} frames, or make the adapter with num_frames={num_frames} "
                "or temporal=False",
            )


def _cast(tokens: Tensor, adapter: SmgaAdapter | CmgaAdapter) -> Tensor:
    """Adapters may be kept in float32 over a half-precision backbone; under autocast torch chooses itself."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the meta device has none
        return tokens
    return tokens.to(adapter.down.weight.dtype)
