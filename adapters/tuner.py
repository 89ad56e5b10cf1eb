"""Injects adapters through PEFT. Every method of PEFT that is overridden, private ones included, is in this file.

A method of its own subclasses ``BlockTuner`` with nothing but its layer; all that differs stands in the layer and the
config.
"""

from __future__ import annotations

import re
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from ..backbones.finding import find_spec
from ..backbones.spec import base_model
from ..errors import DmgalError
from .block_config import BlockAdapterConfig
from .call_layout import layout_of, remove_layout
from .layer import AdapterLayer
from .motion_layer import MotionLayer
from .plan import resolve


class BlockTuner(BaseTuner):
    """PEFT's tuner for a ``BlockAdapterConfig``; users meet it through ``peft.get_peft_model``."""

    prefix: str
    tuner_layer_cls: type[AdapterLayer]
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(self, model: Any, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # before PEFT notes the new config under the name of the old one
        if adapter_name in getattr(model, "peft_config", {}):
            raise DmgalError(
                "This model already has an adapter of this name.",
                received=f"adapter_name={adapter_name!r}",
                expected="a name that is not taken",
                remedy="pass another adapter_name, or delete_adapter first",
            )
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        """Finds the backbone's parts, completes the config from them, and lets calls tell frames and support.

        PEFT asks at every injection, into a new model and beside other adapters alike.
        """
        assert isinstance(peft_config, BlockAdapterConfig)
        model: Any = base_model(self.model)  # where PEFT has wrapped the backbone before, it comes wrapped
        self._spec = find_spec(model)
        root = next(f"{name}." if name else "" for name, module in self.model.named_modules() if module is model)
        self._blocks = {root + name: index for index, name in enumerate(self._spec.block_names())}
        completed = resolve(peft_config, self._spec, model)
        self.peft_config.update({name: completed for name, config in self.peft_config.items() if config is peft_config})
        self._layout = layout_of(model, self._spec)
        return completed

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:  # type: ignore[override]
        return key in self._blocks

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: BlockAdapterConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        adapter = peft_config.adapter_for(self._blocks[current_key], target, self._spec)
        if adapter is None:
            return
        kind = self.tuner_layer_cls
        like = next(p for n, p in target.named_parameters() if p.is_floating_point() and kind.prefix not in n)
        if not (like.is_meta or next(adapter.parameters()).is_meta):
            adapter.to(device=like.device, dtype=like.dtype)
        layer: Any = getattr(target, kind.child, None)
        if layer is None:
            layer = kind(target, self._layout, self._spec)
            target.add_module(kind.child, layer)
        layer.add(adapter_name, adapter, peft_config.num_frames)
        layer.set_adapter(self.active_adapters)
        self.__dict__.setdefault("_own_names", set()).add(adapter_name)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        raise NotImplementedError("these adapters cannot be merged into the weights; use unload()")

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Takes off what this PEFT model brought; what others brought stays, and so does a LoRA."""
        if merge:
            self.merge_adapter()
        names: set[str] = self.__dict__.get("_own_names", set())
        for layer in [module for module in self.model.modules() if isinstance(module, self.tuner_layer_cls)]:
            layer.remove(names)
        self._put_back_saved_modules(names)
        for name in names:
            self.peft_config.pop(name, None)  # shared with a PEFT model below, which goes on without it
        if not self.peft_config:
            vars(self.model).pop("peft_config", None)
        if not any(isinstance(module, AdapterLayer) for module in self.model.modules()):
            remove_layout(base_model(self.model))
        return self.model

    def _put_back_saved_modules(self, names: set[str]) -> None:
        """Of ``modules_to_save``: the backbone's own modules, where no other adapter has a copy."""
        for path, module in list(self.model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper) and set(module.modules_to_save) <= names:
                parent, _, name = path.rpartition(".")
                setattr(self.model.get_submodule(parent), name, module.original_module)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Only our own layers (a LoRA beside them is saved by its own PeftModel), blocks named by their index."""
        places = cls._places(model, adapter_name)
        mark = f"{cls.prefix}adapter.{adapter_name}"
        child = cls.tuner_layer_cls.child
        return {
            f"base_model.model.blocks.{places[key][0]}.{child}.{mark}.{places[key][1]}": tensor
            for key, tensor in state_dict.items()
            if key in places
        }

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{cls.prefix}adapter.{adapter_name}.", f".{cls.prefix}adapter.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Finds each weight's place by the index of its block: another library names the blocks otherwise.

        Raises:
            DmgalError: the weights are not those that the injected adapter has.
        """
        keys = {place: key for key, place in cls._places(model, adapter_name).items()}
        pattern = re.compile(rf"\.(\d+)\.{cls.tuner_layer_cls.child}\.{cls.prefix}adapter\.(.+)$")
        matches = {key: pattern.search(key) for key in state_dict}
        saved = {(int(match[1]), match[2]): state_dict[key] for key, match in matches.items() if match}
        if saved.keys() != keys.keys():
            raise _other_weights(sorted(saved.keys() ^ keys.keys()), len(saved), len(keys))
        others = {key: state_dict[key] for key, match in matches.items() if not match}
        return others | {keys[place]: tensor for place, tensor in saved.items()}

    @classmethod
    def _places(cls, model: nn.Module, adapter_name: str) -> dict[str, tuple[int, str]]:
        """By full name: the index of the block of each weight of an adapter, and its name within the adapter."""
        places, names = {}, list(model.state_dict())
        for index, block in enumerate(find_spec(model).block_names()):
            mark = f".{block}.{cls.tuner_layer_cls.child}.{cls.prefix}adapter.{adapter_name}."
            for key in names:
                _, found, name = f".{key}".partition(mark)
                if found:
                    places[key] = (index, name)
        return places


class DmgalModel(BlockTuner):
    """The tuner of ``DmgalConfig``."""

    prefix = MotionLayer.prefix
    tuner_layer_cls = MotionLayer


def _other_weights(differing: list[tuple[int, str]], saved: int, wanted: int) -> DmgalError:
    names = ", ".join(f"{name} of block {block}" for block, name in differing[:3])
    return DmgalError(
        "Saved weights do not fit the adapter that their config describes.",
        received=f"{saved} tensors; without a partner: {names}{', ...' if len(differing) > 3 else ''}",
        expected=f"the {wanted} tensors of the adapter as it was injected",
        remedy="load the weights with the config that was saved beside them, into a backbone of the same library "
        "if the adapter's weights are named after its parts",
    )
