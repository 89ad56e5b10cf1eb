"""Hooks that read ``num_frames`` and ``num_support``, or a 5-D input, from a call of the backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec
from ..errors import DmgalError


def layout_of(model: Any, spec: BackboneSpec) -> Layout:
    """Return the layout that all adapters of a backbone share. The first call installs the hooks that fill it."""
    if getattr(model, "dmgal_layout", None) is None:
        model.dmgal_layout = Layout()
        for module in spec.modules_above_blocks(model):
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                _CallHooks(model.dmgal_layout).install(module)
    return model.dmgal_layout


def remove_layout(model: Any) -> None:
    """Undo ``layout_of``: remove the hooks and the layout."""
    for module in model.modules():
        for handle in module.__dict__.pop("_dmgal_handles", ()):
            handle.remove()
    vars(model).pop("dmgal_layout", None)


class _CallHooks:
    """Hook pair that keeps the layout of a call while the call runs."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def install(self, module: Any) -> None:
        module._dmgal_handles = (
            module.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
            module.register_forward_hook(self.after, always_call=True),
        )

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self.layout.enter()  # first, because torch calls ``after`` even if the rest fails
        num_frames, num_support = _count(kwargs, "num_frames"), _count(kwargs, "num_support")
        requested_frames = num_frames
        if args and _is_video(args[0]):
            num_frames, args = args[0].shape[1], (args[0].flatten(0, 1), *args[1:])
        for name in [name for name, value in kwargs.items() if _is_video(value)]:
            num_frames, kwargs[name] = kwargs[name].shape[1], kwargs[name].flatten(0, 1)
        if requested_frames not in (None, num_frames):
            received = f"{requested_frames}, with videos of {num_frames} frames"
            raise _wrong_count("num_frames", received, "the number of frames of the videos")
        self.layout.tell(num_frames, num_support)
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.layout.leave()


def _count(kwargs: dict[str, Any], name: str) -> int | None:
    value = kwargs.pop(name, None)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise _wrong_count(name, repr(value), "a whole number, at least 1")
    return value


def _wrong_count(name: str, received: str, expected: str) -> DmgalError:
    return DmgalError(
        "The numbers of frames and support videos of a call must be valid whole numbers.",
        received=f"{name}={received}",
        expected=expected,
        remedy=f"Correct {name}, or omit it.",
    )


def _is_video(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 5
