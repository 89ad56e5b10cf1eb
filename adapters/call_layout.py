"""Takes ``num_frames`` and ``num_support``, or a 5-D input, off a call of the backbone and keeps them while it runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbones.layout import Layout
from ..backbones.spec import BackboneSpec


def layout_of(model: Any, spec: BackboneSpec) -> Layout:
    """The layout that all adapters of a backbone share; with the first one, its calls begin to tell it."""
    if getattr(model, "dmgal_layout", None) is None:
        model.dmgal_layout = Layout()
        for module in spec.modules_above_blocks(model):
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                _CallHooks(model.dmgal_layout).install(module)
    return model.dmgal_layout


def remove_layout(model: Any) -> None:
    """Leaves the backbone as it was before ``layout_of``."""
    for module in model.modules():
        for handle in module.__dict__.pop("_dmgal_handles", ()):
            handle.remove()
    del model.dmgal_layout


class _CallHooks:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def install(self, module: Any) -> None:
        module._dmgal_handles = (
            module.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
            module.register_forward_hook(self.after, always_call=True),
        )

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        num_frames, num_support = kwargs.pop("num_frames", None), kwargs.pop("num_support", None)
        if args and _is_video(args[0]):
            num_frames, args = args[0].shape[1], (args[0].flatten(0, 1), *args[1:])
        for name in [name for name, value in kwargs.items() if _is_video(value)]:
            num_frames, kwargs[name] = kwargs[name].shape[1], kwargs[name].flatten(0, 1)
        self.layout.enter(num_frames, num_support)
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.layout.leave()


def _is_video(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 5
