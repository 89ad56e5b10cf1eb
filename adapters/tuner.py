"""Injects adapters through PEFT. Every method of PEFT that is overridden, private ones included, is in this file."""

from __future__ import annotations

import re
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..backbones.finding import find_spec
from ..backbones.layout import Layout
from ..backbones.spec import base_model
from ..errors import DmgalError
from .cmga import CmgaAdapter
from .config import DmgalConfig
from .layer import CHILD, PREFIX, AdapterLayer
from .motion import BottleneckShape
from .plan import resolve
from .smga import SmgaAdapter

_CHECKPOINT_KEY = re.compile(rf"\.(\d+)\.{CHILD}\.{PREFIX}adapter\.(.+)$")


class DmgalModel(BaseTuner):
    """PEFT's tuner for ``DmgalConfig``; users meet it through ``peft.get_peft_model``."""

    prefix = PREFIX
    tuner_layer_cls = AdapterLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        """Finds the backbone's parts, completes the config from them, and lets calls tell frames and support.

        PEFT asks at every injection, into a new model and beside other adapters alike.
        """
        assert isinstance(peft_config, DmgalConfig)
        model: Any = base_model(self.model)  # where PEFT has wrapped the backbone before, it comes wrapped
        self._spec = find_spec(model)
        self._prefix = next(
            f"{name}." if name else "" for name, module in self.model.named_modules() if module is model
        )
        completed = resolve(peft_config, self._spec, model)
        self.peft_config.update({name: completed for name, config in self.peft_config.items() if config is peft_config})
        if getattr(model, "dmgal_layout", None) is None:
            model.dmgal_layout = Layout()
            for module in self._spec.modules_above_blocks(model):
                if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                    _CallLayout.install(module, model.dmgal_layout)
        self._layout: Layout = model.dmgal_layout
        return completed

    def _check_target_module_exists(self, peft_config: DmgalConfig, key: str) -> bool:  # type: ignore[override]
        return key in self._targets(peft_config)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: DmgalConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = getattr(target, CHILD, None)
        if layer is None:
            like = next(p for p in target.parameters() if p.is_floating_point())
            layer = AdapterLayer(target, self._layout, self._spec.batch_first)
            target.add_module(CHILD, layer)
        else:
            like = next(p for n, p in target.named_parameters() if not n.startswith(f"{CHILD}."))
        self._refuse_taken_name(layer, adapter_name)
        kind = self._targets(peft_config)[current_key]
        adapter = kind(_shape(peft_config))
        if not (like.is_meta or next(adapter.parameters()).is_meta):
            adapter.to(device=like.device, dtype=like.dtype)
        layer.dmgal_adapter[adapter_name] = adapter
        layer.set_adapter(self.active_adapters)

    def _targets(self, config: DmgalConfig) -> dict[str, type[SmgaAdapter] | type[CmgaAdapter]]:
        names = [self._prefix + name for name in self._spec.block_names()]
        smga = {names[index]: SmgaAdapter for index in config.smga_blocks or ()}
        return smga | {names[index]: CmgaAdapter for index in config.cmga_blocks or ()}

    @staticmethod
    def _refuse_taken_name(layer: AdapterLayer, adapter_name: str) -> None:
        if adapter_name in layer.dmgal_adapter:
            raise DmgalError(
                "This backbone already has a motion adapter of this name.",
                received=f"adapter_name={adapter_name!r}",
                expected="a name that is not taken",
                remedy="pass another adapter_name, or delete_adapter first",
            )

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            raise NotImplementedError("motion adapters cannot be merged into the weights; use unload()")
        for layer in [module for module in self.model.modules() if isinstance(module, AdapterLayer)]:
            layer.remove()
        for module in self.model.modules():
            _CallLayout.remove(module)
        del base_model(self.model).dmgal_layout
        vars(self.model).pop("peft_config", None)
        return self.model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Only our own layers: a LoRA beside them is saved by its own PeftModel."""
        mark = f".{CHILD}.{PREFIX}adapter.{adapter_name}."
        return {key: tensor for key, tensor in state_dict.items() if mark in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{PREFIX}adapter.{adapter_name}.", f".{PREFIX}adapter.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Finds each weight's place by the index of its block: another library names the blocks otherwise."""
        places: dict[tuple[str, ...], str] = {}
        for key in model.state_dict():
            match = _CHECKPOINT_KEY.search(key)
            if match and match[2].startswith(f"{adapter_name}."):
                places[match[1], match[2].removeprefix(f"{adapter_name}.")] = key
        matches = {key: _CHECKPOINT_KEY.search(key) for key in state_dict}
        return {places.get(match.groups(), key) if match else key: state_dict[key] for key, match in matches.items()}


class _CallLayout:
    """Takes ``num_frames`` and ``num_support``, or a 5-D input, off a call and keeps them while it runs."""

    @staticmethod
    def install(module: Any, layout: Layout) -> None:
        hooks = _CallLayout(layout)
        module._dmgal_handles = (
            module.register_forward_pre_hook(hooks.before, with_kwargs=True, prepend=True),
            module.register_forward_hook(hooks.after, always_call=True),
        )

    @staticmethod
    def remove(module: nn.Module) -> None:
        for handle in module.__dict__.pop("_dmgal_handles", ()):
            handle.remove()

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

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


def _shape(config: DmgalConfig) -> BottleneckShape:
    """Of a config that ``resolve`` has completed."""
    values = {name: getattr(config, name) for name in BottleneckShape.__dataclass_fields__}
    return BottleneckShape(**{**values, "grid": tuple(values["grid"])})
