"""Adapters at one block: a child module of the block plus hooks, never a wrapper.

The block keeps its name and type, so LoRA can wrap its linear layers before or after, and ``unload`` leaves no trace.
Each block has one hook pair, which runs its adapter layers in the order of their rank. Another hook pair on the
backbone reads ``num_frames`` and ``num_support``, or a 5-D input, from each call and keeps them while the call runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.naflex import check_patches
from ..backbones.shape import BlockShape
from ..backbones.spec import BackboneSpec
from ..backbones.state import Layout
from ..errors import DmgalError

Act = Callable[[Any, Tensor], Tensor]
"""Function ``act(adapter, tokens)`` that maps tokens ``(V, T, N, C)`` to the same shape."""
Acts = Callable[[Any], bool]
"""Predicate that selects the adapters that act at a position."""
BASE = "__base__"
"""Name in a mixed batch of the backbone without an adapter, as in PEFT."""


def call(adapter: nn.Module, tokens: Tensor) -> Tensor:
    """Apply an adapter by its ``forward``."""
    return adapter(tokens)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """The adapters of one block by name. The active ones change the tokens that pass through the block.

    A subclass overrides ``enter_block`` or ``leave_block`` to change tokens before or after the block. It overrides
    ``attach`` to set hooks on parts of the block. ``spec.entry`` and ``spec.exit`` are the shapes of this block.
    """

    rank: ClassVar[int] = 0
    """Order of layers at one block. Lower ranks act first. Among equal ranks, the layer added last acts first."""
    child: ClassVar[str]
    """Name in the block. It must not contain the prefix, because PEFT's ``delete_adapter`` skips such names."""
    prefix: ClassVar[str]
    """Prefix of the names of submodules with parameters. PEFT recognizes a method's parameters by it."""
    mixes_adapters: ClassVar[bool] = True
    """False if an adapter acts on all videos of a batch, so that a batch cannot mix several."""
    carries_state: ClassVar[bool] = False
    """True if a block continues from what the adapter of an earlier block left, so that no block can be recomputed."""

    def __init_subclass__(cls) -> None:
        cls.adapter_layer_names = (f"{cls.prefix}adapter",)

    def __init__(self, block: nn.Module, layout: Layout, spec: BackboneSpec) -> None:
        super().__init__()
        self._block = (block,)  # in a tuple, so that the block does not become a child of its own child
        self.layout = layout
        self.spec = spec
        self.add_module(f"{self.prefix}adapter", nn.ModuleDict())
        self._num_frames: dict[str, int] = {}
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self._mixture: tuple[str, ...] | None = None
        self._selected: Tensor | None = None
        self.acting = ""
        """Name of the adapter that currently acts."""
        self.merged_adapters: list[str] = []
        self._part_handles = list(self.attach(block))
        siblings = [child for child in block.children() if isinstance(child, AdapterLayer)]
        self._block_hooks: _BlockHooks = siblings[0]._block_hooks if siblings else _BlockHooks(block)
        self._block_hooks.add(self)

    def attach(self, block: nn.Module) -> Iterable[RemovableHandle]:
        """Set hooks on parts of the block and return their handles."""
        return ()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the input, of any shape ``(...)``. A block that is a ``Sequential`` calls all its children."""
        return tokens

    def enter_block(self, tokens: Tensor) -> Tensor:
        """Return the input tokens of the block after the active adapters, in the block's layout."""
        return tokens

    def leave_block(self, tokens: Tensor) -> Tensor:
        """Return the output tokens of the block after the active adapters, in the block's layout."""
        return tokens

    @property
    def block(self) -> nn.Module:
        """The block that the layer belongs to."""
        return self._block[0]

    @property
    def adapters(self) -> nn.ModuleDict:
        """All adapters by name, active or not."""
        return getattr(self, f"{self.prefix}adapter")

    @property
    def weight(self) -> Tensor:
        """Not there, although PEFT looks for it in every layer: reading it raises an AttributeError."""
        raise AttributeError("An adapter layer has no base weight.")

    @property
    def bias(self) -> Tensor:
        """Not there, as ``weight``."""
        raise AttributeError("An adapter layer has no base bias.")

    def get_base_layer(self) -> nn.Module:
        """Return the block, for PEFT."""
        return self.block

    def add(self, name: str, adapter: nn.Module, num_frames: int) -> None:
        """Add an adapter. ``num_frames`` is its default for calls that do not pass a number of frames."""
        if name in self.adapters:
            raise name_in_use("This backbone already has an adapter of this kind and name.", name)
        self.adapters[name] = adapter
        self._num_frames[name] = num_frames

    def remove(self, names: Collection[str]) -> None:
        """Remove adapters. Without adapters the layer removes itself from its block."""
        for name in set(names) & set(self.adapters):
            del self.adapters[name]
        if not len(self.adapters):
            for handle in self._part_handles:
                handle.remove()
            self._block_hooks.remove(self)
            delattr(self.block, self.child)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Do nothing. PEFT calls every layer when it merges a LoRA in the same model."""

    def unmerge(self) -> None:
        """Do nothing, as ``merge``."""

    def active(self) -> list[tuple[str, Any]]:
        """Return names and modules of the active adapters."""
        if self.disable_adapters:
            return []
        names = self.active_adapters if self._mixture is None else dict.fromkeys(self._mixture)
        return [(name, self.adapters[name]) for name in names if name in self.adapters]

    @property
    def is_mixed(self) -> bool:
        """True during a call with a mixed batch."""
        return self._mixture is not None

    def mix(self, names: Sequence[str] | None) -> None:
        """Set the adapter of each video of the following calls, or return to the active adapters if None."""
        self._mixture = None if names is None else tuple(names)

    def part_of(self, videos: Tensor) -> Tensor:
        """Return those of some videos ``(V, ...)`` on which an adapter currently acts."""
        return videos if self._selected is None else videos[self._selected]

    def among_all(self, part: Tensor) -> Tensor:
        """Return a tensor of all videos with a part for those on which an adapter acts, and zeros for the others."""
        if self._selected is None or self._mixture is None:
            return part
        return part.new_zeros(len(self._mixture), *part.shape[1:]).index_copy(0, self._selected, part)

    def through(
        self, tokens: Tensor, act: Act = call, acts: Acts | None = None, shape: BlockShape | None = None
    ) -> Tensor:
        """Apply all active adapters that ``acts`` selects to tokens in the block's layout.

        Args:
            tokens: ``(V*T, N, C)``, ``(N, V*T, C)``, or a map.
            act: applies one adapter to ``(V, T, N, C)``.
            acts: selects adapters. None: all.
            shape: shape of ``tokens``, by default that of the block's output.
        """
        shape = shape or self.spec.exit
        for name, adapter in self.active():
            if acts is not None and not acts(adapter):
                continue
            videos = self.layout.videos(shape.tokens(tokens), self._num_frames[name])
            self._selected, self.acting = self._videos_with(name, videos), name
            result = act(adapter, cast_for(adapter, self.part_of(videos))).to(tokens.dtype)
            if self._selected is not None:
                result = videos.index_copy(0, self._selected, result)
            tokens = shape.native(rearrange(result, "v t n c -> (v t) n c"))
        return tokens

    def token_by_token(self, tokens: Tensor, act: Act) -> Tensor:
        """Apply all active adapters by an ``act`` that changes each token alone, in any layout.

        Only a mixed batch needs to know the videos. Other calls may be repeated by a library's own checkpointing.
        """
        if self._mixture is not None:
            return self.through(tokens, act)
        for _, adapter in self.active():
            tokens = act(adapter, cast_for(adapter, tokens)).to(tokens.dtype)
        return tokens

    def _videos_with(self, name: str, videos: Tensor) -> Tensor | None:
        """Return the indices of the videos with an adapter in a mixed batch, or None if all have it."""
        if self._mixture is None:
            return None
        if len(self._mixture) != len(videos):
            raise DmgalError(
                "A mixed batch needs one adapter name for each video.",
                received=f"{len(self._mixture)} names for {len(videos)} videos of {videos.shape[1]} frames",
                expected=f"{len(videos)} names",
                remedy="Pass one name for each video, not for each frame, and a 5-D input or num_frames.",
            )
        indices = [index for index, other in enumerate(self._mixture) if other == name]
        return torch.tensor(indices, device=videos.device)

    def before(self, module: nn.Module, act: Act, acts: Acts | None = None) -> RemovableHandle:
        """Apply the adapters to the input of a part of the block."""
        # Partials of methods can be copied with the model, unlike closures.
        return module.register_forward_pre_hook(partial(self._enter_part, act, acts), with_kwargs=True)

    def _enter_part(
        self, act: Act, acts: Acts | None, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[object, object]:
        return _change_input(args, kwargs, lambda tokens: self.through(tokens, act, acts), self.spec.entry.num_dims)


def name_in_use(problem: str, name: str) -> DmgalError:
    """Return the error for an adapter whose name another adapter has."""
    remedy = "Pass another adapter_name, or call delete_adapter first."
    return DmgalError(problem, received=f"adapter_name={name!r}", expected="an unused name", remedy=remedy)


class _BlockHooks:
    """The hook pair of one block, which runs the block's adapter layers in the order of their rank."""

    def __init__(self, block: nn.Module) -> None:
        self._layers: list[AdapterLayer] = []
        self._handles = (
            block.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            block.register_forward_hook(self._leave, prepend=True),
        )

    def add(self, layer: AdapterLayer) -> None:
        self._layers = sorted([layer, *self._layers], key=lambda layer: layer.rank)

    def remove(self, layer: AdapterLayer) -> None:
        self._layers = [other for other in self._layers if other is not layer]
        if not self._layers:
            for handle in self._handles:
                handle.remove()

    def _enter(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[object, Any]:
        return _change_input(args, kwargs, self._enter_layers, self._layers[0].spec.entry.num_dims)

    def _leave(self, block: nn.Module, inputs: object, output: object) -> object:
        return with_tokens(output, self._leave_layers)

    def _enter_layers(self, tokens: Tensor) -> Tensor:
        for layer in self._layers:
            tokens = layer.enter_block(tokens)
        return tokens

    def _leave_layers(self, tokens: Tensor) -> Tensor:
        for layer in self._layers:
            tokens = layer.leave_block(tokens)
        return tokens


def _change_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor], num_dims: int
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the arguments of a call with changed tokens: the first positional one, or the first keyword of tokens."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor) and value.ndim == num_dims)
    return args, {**kwargs, name: change(kwargs[name])}


def with_tokens(output: Any, change: Callable[[Tensor], Tensor]) -> object:
    """Return the output of a module with changed tokens, which are the first element of a tuple."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def own_module(module: nn.Module) -> nn.Module:
    """Return the backbone's module below any LoRA wrappers."""
    while isinstance(module, BaseTunerLayer) and not isinstance(module, AdapterLayer):
        module = module.get_base_layer()
    return module


def cast_for(adapter: nn.Module, tokens: Tensor) -> Tensor:
    """Cast tokens to the dtype of the adapter, which may be float32 over a half-precision backbone.

    Under autocast the tokens stay as they are, because torch chooses the precision of each operation.
    """
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the meta device has none
        return tokens
    return tokens.to(next(weight.dtype for weight in adapter.parameters() if weight.is_floating_point()))


def layout_of(model: Any, spec: BackboneSpec) -> Layout:
    """Return the layout that all adapters of a backbone share. The first call installs the hooks that fill it."""
    if getattr(model, "dmgal_layout", None) is None:
        model.dmgal_layout = Layout()
        for module in spec.modules_above_blocks(model):
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                _CallHooks(model.dmgal_layout, spec).install(module)
    return model.dmgal_layout


def remove_layout(model: Any) -> None:
    """Undo ``layout_of``: remove the hooks and the layout."""
    for module in model.modules():
        for handle in module.__dict__.pop("_dmgal_handles", ()):
            handle.remove()
    vars(model).pop("dmgal_layout", None)


class _CallHooks:
    """Hook pair that keeps the layout of a call while the call runs."""

    def __init__(self, layout: Layout, spec: BackboneSpec) -> None:
        self.layout = layout
        self.spec = spec

    def install(self, module: Any) -> None:
        module._dmgal_handles = (
            module.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
            module.register_forward_hook(self.after, always_call=True),
        )

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[object, object]:
        self.layout.enter()  # first, because torch calls ``after`` even if the rest fails
        num_frames, num_support = _count(kwargs, "num_frames"), _count(kwargs, "num_support")
        requested_frames = num_frames
        check_patches(self.spec, args, kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim in (4, 5) and value.shape[-3] == 3:
                self.spec.check_image_size(value.shape[-2:], grid=True)
        if args and _is_video(args[0]):
            num_frames, args = args[0].shape[1], (self._frames(args[0]), *args[1:])
        for name in [name for name, value in kwargs.items() if _is_video(value)]:
            num_frames, kwargs[name] = kwargs[name].shape[1], self._frames(kwargs[name])
        if requested_frames not in (None, num_frames):
            received = f"{requested_frames}, with videos of {num_frames} frames"
            raise _wrong_count("num_frames", received, "the number of frames of the videos")
        self.layout.set_values(None if num_frames is None else self.spec.num_steps(num_frames), num_support)
        return args, kwargs

    def _frames(self, videos: Tensor) -> Tensor:
        """Return the frames of videos, or the videos themselves if the backbone takes videos."""
        return videos.flatten(0, 1) if self.spec.clip_frames is None else videos

    def after(self, module: nn.Module, args: object, output: object) -> None:
        self.layout.leave()


def _count(kwargs: dict[str, object], name: str) -> int | None:
    value = kwargs.pop(name, None)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise _wrong_count(name, repr(value), "a whole number, at least 1")
    return value


def _wrong_count(name: str, received: str, expected: str) -> DmgalError:
    return DmgalError(
        f"This call has an invalid {name}.",
        received=f"{name}={received}",
        expected=expected,
        remedy=f"Correct {name}, or omit it.",
    )


def _is_video(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 5
