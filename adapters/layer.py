"""What hangs on one block: a child module of the block plus hooks, never a wrapper.

Because the block stays itself, its name and type stay, LoRA can be added to its linear layers before or after, and
``unload`` leaves no trace. A method's own layer says where its adapters act, by the hooks that ``attach`` sets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec
from ..errors import DmgalError

Act = Callable[[Any, Tensor], Tensor]
"""What an adapter does with tokens ``(V, T, N, C)``: ``act(adapter, tokens)`` gives tokens of the same shape."""
Acts = Callable[[Any], bool]
"""Whether an adapter acts at a place at all."""


def always(adapter: nn.Module) -> bool:
    """Of adapters that act wherever they are asked to."""
    return True


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Holds the adapters of one block by name, and lets the active ones act on what passes through the block."""

    rank: ClassVar[int] = 0
    """Where several layers act at one place of a block, lower ranks come first, in whatever order they were added."""
    child: ClassVar[str]
    """Name in the block. PEFT's ``delete_adapter`` passes over names that contain the prefix, so it must not."""
    prefix: ClassVar[str]
    """Begins the names of what holds parameters; PEFT knows a method's parameters by it."""

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
        self.merged_adapters: list[str] = []
        self._handles = list(self.attach(block))
        for layer in sorted([*_layers(block), self], key=lambda layer: layer.rank, reverse=True):
            layer._act_before_the_rest()

    def _act_before_the_rest(self) -> None:
        hooks: Any
        for hooks in (self.block._forward_pre_hooks, self.block._forward_hooks):
            for handle in reversed(self._handles):
                if handle.id in hooks:
                    hooks.move_to_end(handle.id, last=False)

    def attach(self, block: nn.Module) -> Iterable[RemovableHandle]:
        """Sets the hooks on the block or its parts."""
        raise NotImplementedError

    @property
    def block(self) -> nn.Module:
        return self._block[0]

    @property
    def adapters(self) -> nn.ModuleDict:
        """Every adapter by its name, active or not."""
        return getattr(self, f"{self.prefix}adapter")

    @property
    def weight(self) -> Tensor:
        raise AttributeError("an adapter at a block has no base weight")

    @property
    def bias(self) -> Tensor:
        raise AttributeError("an adapter at a block has no base bias")

    def get_base_layer(self) -> nn.Module:
        return self.block

    def add(self, name: str, adapter: nn.Module, num_frames: int) -> None:
        """Takes one adapter more; ``num_frames`` holds where a call does not tell."""
        if name in self.adapters:
            raise DmgalError(
                "This backbone already has an adapter of this kind and name.",
                received=f"adapter_name={name!r}",
                expected="a name that is not taken",
                remedy="pass another adapter_name, or delete_adapter first",
            )
        self.adapters[name] = adapter
        self._num_frames[name] = num_frames

    def remove(self, names: Collection[str]) -> None:
        """Drops adapters; with the last one the layer itself leaves its block."""
        for name in set(names) & set(self.adapters):
            del self.adapters[name]
        if not len(self.adapters):
            for handle in self._handles:
                handle.remove()
            del self.block._modules[self.child]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing to do: PEFT asks every layer when it merges a LoRA beside this one."""

    def unmerge(self) -> None:
        """Nothing to do, as in ``merge``."""

    def active(self) -> list[tuple[str, Any]]:
        """Names and adapters that act now."""
        if self.disable_adapters:
            return []
        return [(name, self.adapters[name]) for name in self.active_adapters if name in self.adapters]

    def through(self, tokens: Tensor, act: Act, acts: Acts = always) -> Tensor:
        """Tokens as the block has them, ``(V*T, N, C)`` or ``(N, V*T, C)``, after all active adapters that act here."""
        for name, adapter in self.active():
            if not acts(adapter):
                continue
            flat = tokens if self.spec.batch_first else tokens.transpose(0, 1)  # (V*T, N, C)
            videos = self.layout.videos(flat, self._num_frames[name])  # (V, T, N, C)
            result = act(adapter, cast_for(adapter, videos)).flatten(0, 1).to(tokens.dtype)  # (V*T, N, C)
            tokens = result if self.spec.batch_first else result.transpose(0, 1)
        return tokens

    def before(self, module: nn.Module, act: Act, acts: Acts = always) -> RemovableHandle:
        """Lets the adapters act on what enters a module."""
        return module.register_forward_pre_hook(partial(self._enter, act, acts), with_kwargs=True)

    def after(self, module: nn.Module, act: Act, acts: Acts = always) -> RemovableHandle:
        """Lets the adapters act on what a module returns; of a tuple, on its first element."""
        return module.register_forward_hook(partial(self._leave, act, acts), prepend=True)

    # Partials of methods, not closures: they are copied with the model.

    def _enter(
        self, act: Act, acts: Acts, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        if args:
            return (self.through(args[0], act, acts), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor) and value.ndim == 3)
        return args, {**kwargs, name: self.through(kwargs[name], act, acts)}

    def _leave(self, act: Act, acts: Acts, module: nn.Module, inputs: Any, output: Any) -> Any:
        return with_tokens(output, lambda tokens: self.through(tokens, act, acts))


def with_tokens(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a module returned, with its tokens changed; of a tuple they are the first element."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def own_module(module: nn.Module) -> nn.Module:
    """The backbone's own module, where a LoRA has wrapped it."""
    while isinstance(module, BaseTunerLayer) and not isinstance(module, AdapterLayer):
        module = module.get_base_layer()
    return module


def _layers(block: nn.Module) -> list[AdapterLayer]:
    return [child for child in block.children() if isinstance(child, AdapterLayer)]


def cast_for(adapter: nn.Module, tokens: Tensor) -> Tensor:
    """Adapters may be kept in float32 over a half-precision backbone; under autocast torch chooses itself."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the meta device has none
        return tokens
    return tokens.to(next(adapter.parameters()).dtype)
