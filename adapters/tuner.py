"""Injection of adapters through PEFT, and the registry ``ADAPTERS``.

All overrides of PEFT methods, private ones included, are in this file. A new method subclasses ``BlockTuner`` and only
sets its layer class. Everything else is in its layer and its config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backbones.families import find_spec
from ..backbones.spec import BackboneSpec, base_model
from ..errors import DmgalError
from .base import BlockAdapterConfig, ExternalPeftType, resolve
from .layer import BASE, AdapterLayer, layout_of, name_in_use, remove_layout


class BlockTuner(BaseTuner):
    """PEFT tuner for a ``BlockAdapterConfig``, created by ``peft.get_peft_model``."""

    prefix: str
    tuner_layer_cls: type[AdapterLayer]
    target_module_mapping: dict[str, list[str]] = {}
    names_are_per_video = True
    """``adapter_names`` of a call has a name for each video, not for each frame."""

    def __init_subclass__(cls) -> None:
        cls.prefix = cls.tuner_layer_cls.prefix

    def __init__(self, model: Any, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # The check precedes PEFT's constructor, which would replace the config of that name.
        if adapter_name in getattr(model, "peft_config", {}):
            raise name_in_use("This model already has an adapter of this name.", adapter_name)
        if isinstance(peft_config, BlockAdapterConfig) and kwargs.get("state_dict") is None:
            _check_not_loaded_by_transformers(model, peft_config)
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Inject an adapter. The config determines its blocks, and a ``state_dict`` must have its weights.

        As with PEFT's own methods, the values are not loaded here: call ``set_peft_model_state_dict``.
        """
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        if state_dict is not None:
            config = self.peft_config[adapter_name]
            self._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)  # raises if they differ

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, object]) -> PeftConfig:
        """Find the parts of the backbone, complete the config from them, and install the layout hooks.

        PEFT calls this at every injection, into a new model as well as beside other adapters.
        """
        assert isinstance(peft_config, BlockAdapterConfig)
        model: Any = base_model(self.model)  # PEFT may already have wrapped the backbone
        self._spec = find_spec(model)
        root = next(f"{name}." if name else "" for name, module in self.model.named_modules() if module is model)
        self._blocks = {root + name: index for index, name in enumerate(self._spec.block_names())}
        completed = resolve(peft_config, self._spec, model)
        self.peft_config.update({name: completed for name, config in self.peft_config.items() if config is peft_config})
        _check_saved_modules(completed, self._blocks, self.model, self._spec)
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
        index = self._blocks[current_key]
        adapter = peft_config.adapter_for(index, target, self._spec)
        if adapter is None:
            return
        kind = self.tuner_layer_cls
        own = (p for n, p in target.named_parameters() if p.is_floating_point() and kind.prefix not in n)
        like = next(own, None)
        if like is not None and not (like.is_meta or next(adapter.parameters()).is_meta):
            adapter.to(device=like.device, dtype=like.dtype)
        layer: Any = getattr(target, kind.child, None)
        if layer is None:
            layer = kind(target, self._layout, self._spec.of_block(index))
            target.add_module(kind.child, layer)
        layer.add(adapter_name, adapter, peft_config.num_frames)
        layer.set_adapter(self.active_adapters)
        self.__dict__.setdefault("_own_names", set()).add(adapter_name)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters of this kind.

        Raises:
            DmgalError: there is no such adapter. PEFT would deactivate all others.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        self._check_names(names)
        super().set_adapter(adapter_name, inference_mode)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: Any) -> Iterator[None]:
        """Apply ``adapter_names``, one name for each video, to the calls inside the context.

        The result of each adapter equals that of a call with its videos alone. ``"__base__"`` is the backbone.

        Raises:
            DmgalError: a name is unknown, or the adapters cannot be mixed.
        """
        names = kwargs.get("adapter_names")
        if kwargs.get("alora_offsets") is not None:
            raise _not_mixed("alora_offsets", "a call without alora_offsets, which only aLoRA reads")
        if names is None:
            yield
            return
        self._check_mixture(names)
        layers = [module for module in self.model.modules() if isinstance(module, self.tuner_layer_cls)]
        try:
            for layer in layers:
                layer.mix(names)
            yield
        finally:
            for layer in layers:
                layer.mix(None)

    def _check_mixture(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise _not_mixed(f"adapter_names={names!r}", "a list of names, one for each video")
        if self.training:
            raise _not_mixed("a model in training mode", "a model in evaluation mode: call model.eval() first")
        if not self.tuner_layer_cls.mixes_adapters:
            kind = self.tuner_layer_cls.__name__
            raise _not_mixed(f"adapters of {kind}, which change all videos of a batch", "one call for each adapter")
        if any(isinstance(module, ModulesToSaveWrapper) for module in self.model.modules()):
            raise _not_mixed("an adapter with modules_to_save", "adapters without trained parts of the backbone")
        self._check_names([name for name in names if name != BASE])

    def _check_names(self, names: Sequence[str]) -> None:
        layers = [module for module in self.model.modules() if isinstance(module, self.tuner_layer_cls)]
        known = {name for layer in layers for name in layer.adapters}
        if unknown := sorted(set(names) - known):
            raise DmgalError(
                "There is no adapter of this name.",
                received=", ".join(map(repr, unknown)),
                expected=f"adapters of {type(self).__name__}: {', '.join(map(repr, sorted(known))) or 'none'}",
                remedy="Check the names, or add the adapter first.",
            )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Raise a DmgalError, because these adapters are not linear."""
        raise DmgalError(
            "These adapters cannot be merged into the weights.",
            received=f"a merge of {type(self).__name__}, whose adapters are not linear layers",
            expected="a LoRA, or a call without merging",
            remedy="Keep the adapter in the model, or remove it by unload().",
        )

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], adapter_name: str, **_: object) -> None:
        """Raise a DmgalError, because these adapters are not linear."""
        raise DmgalError(
            "These adapters cannot be combined into a weighted adapter.",
            received=f"add_weighted_adapter({adapters}, {weights}, {adapter_name!r})",
            expected="LoRAs, whose changes of the weights can be added; these adapters are not linear",
            remedy="Activate one adapter by set_adapter, or average the logits of several.",
        )

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Remove the adapters of this PEFT model. Those of other PEFT models stay, and so does a LoRA."""
        if merge:
            self.merge_adapter()
        names: set[str] = self.__dict__.get("_own_names", set())
        for layer in [module for module in self.model.modules() if isinstance(module, self.tuner_layer_cls)]:
            layer.remove(names)
        self._restore_saved_modules(names)
        for name in names:
            self.peft_config.pop(name, None)  # a PEFT model below shares this dictionary and stays in use
        if not self.peft_config:
            vars(self.model).pop("peft_config", None)
        if not any(isinstance(module, AdapterLayer) for module in self.model.modules()):
            remove_layout(base_model(self.model))
        return self.model

    def _restore_saved_modules(self, names: set[str]) -> None:
        """Restore the backbone's modules named in ``modules_to_save``, unless another adapter has a copy."""
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
        """Return the weights of our layers, with blocks named by index. The PeftModel of a LoRA saves the LoRA."""
        path = f"{cls.tuner_layer_cls.child}.{cls.prefix}adapter.{adapter_name}"
        return {
            f"base_model.model.blocks.{block}.{path}.{name}": state_dict[key]
            for key, (block, name) in cls._weight_locations(model, adapter_name).items()
            if key in state_dict
        }

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{cls.prefix}adapter.{adapter_name}.", f".{cls.prefix}adapter.", 1)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Rename saved weights to the names of this backbone, by the index of their block.

        Raises:
            DmgalError: the weights differ from those of the injected adapter.
        """
        keys = {location: key for key, location in cls._weight_locations(model, adapter_name).items()}
        pattern = re.compile(rf"\.(\d+)\.{cls.tuner_layer_cls.child}\.{cls.prefix}adapter\.(.+)$")
        matches = {key: pattern.search(key) for key in state_dict}
        saved = {(int(match[1]), match[2]): state_dict[key] for key, match in matches.items() if match}
        if saved.keys() != keys.keys():
            raise _weights_do_not_fit(sorted(saved.keys() ^ keys.keys()), len(saved), len(keys))
        others = {key: state_dict[key] for key, match in matches.items() if not match}
        return others | {keys[location]: tensor for location, tensor in saved.items()}

    @classmethod
    def _weight_locations(cls, model: nn.Module, adapter_name: str) -> dict[str, tuple[int, str]]:
        """Return the block index and the name within the adapter of each weight of an adapter, by its full name."""
        locations, names = {}, list(model.state_dict())
        for index, block in enumerate(find_spec(model).block_names()):
            mark = f".{block}.{cls.tuner_layer_cls.child}.{cls.prefix}adapter.{adapter_name}."
            for key in names:
                _, separator, name = f".{key}".partition(mark)
                if separator:
                    locations[key] = (index, name)
        return locations


def _check_saved_modules(
    config: BlockAdapterConfig, blocks: dict[str, int], model: nn.Module, spec: BackboneSpec
) -> None:
    """Raise a DmgalError if ``modules_to_save`` names a block with an adapter, or a module that contains one.

    PEFT would copy the block with its adapter, and the names of the copy would not fit the adapter when it is loaded.
    """
    if not config.modules_to_save:
        return
    ends = tuple(config.modules_to_save)
    saved = [name for name, _ in model.named_modules() if name and name.endswith(ends)]  # PEFT's rule
    inside = {block: name for block in blocks for name in saved if f"{block}.".startswith(f"{name}.")}
    with torch.random.fork_rng(devices=[]):  # the initial weights of the adapters stay as without this check
        adapted = [b for b in inside if config.adapter_for(blocks[b], model.get_submodule(b), spec) is not None]
    if adapted:
        raise DmgalError(
            "modules_to_save cannot name a block with an adapter, or a module that contains one.",
            received=f"modules_to_save={sorted(ends)}: {inside[adapted[0]]} holds the adapter of {adapted[0]}",
            expected="modules without adapters, such as a final norm or a projection",
            remedy="Remove the name, or train the whole backbone instead (backbone.trainable in recipes).",
        )


def _check_not_loaded_by_transformers(model: nn.Module, config: BlockAdapterConfig) -> None:
    """Raise a DmgalError if ``load_adapter`` of transformers injects a saved adapter.

    It would look for weights under the names of the model and leave the adapter at its initial values, as names of our
    weights do not depend on the library. It injects the config itself, without weights, unlike PEFT's ``PeftModel``.
    """
    if config.fingerprint and isinstance(model, PreTrainedModel):
        raise DmgalError(
            "load_adapter of transformers cannot load this adapter, because it would not find its weights.",
            received=f"a saved {type(config).__name__} for {type(model).__name__}, without weights",
            expected="peft.PeftModel.from_pretrained(model, folder)",
            remedy="Load the adapter through PEFT. To start from new weights, pass a new config.",
        )


def _not_mixed(received: str, expected: str) -> DmgalError:
    return DmgalError(
        "This call cannot mix adapters.",
        received=received,
        expected=expected,
        remedy="Call the model once for each adapter.",
    )


def _weights_do_not_fit(differing: list[tuple[int, str]], num_saved: int, num_expected: int) -> DmgalError:
    names = ", ".join(f"{name} of block {block}" for block, name in differing[:3])
    return DmgalError(
        "Saved weights do not fit the adapter that their config describes.",
        received=f"{num_saved} tensors; unmatched: {names}{', ...' if len(differing) > 3 else ''}",
        expected=f"the {num_expected} tensors of the injected adapter",
        remedy="Load the weights with the config saved beside them. BitFit also needs a backbone of the same library, "
        "because its weights are named after the backbone's parts.",
    )


ADAPTERS: dict[type[BlockAdapterConfig], type[BlockTuner]] = {}
"""Tuners of all registered methods by config class."""


def register(config: type[BlockAdapterConfig], tuner: type[BlockTuner]) -> None:
    """Add a method to ``ADAPTERS`` and to PEFT's tables. A second call, as after a reload, changes nothing.

    Raises:
        RuntimeError: PEFT has another method with this name or parameter prefix.
    """
    peft_type = ExternalPeftType(config.kind)
    # PEFT's type for the keys is an enumeration that cannot grow.
    configs = cast(dict[str, type[PeftConfig]], mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    tuners = cast(dict[str, type[BaseTuner]], mapping.PEFT_TYPE_TO_TUNER_MAPPING)
    prefixes = cast(dict[str, str], mapping.PEFT_TYPE_TO_PREFIX_MAPPING)
    registered = configs.get(peft_type)
    if registered is not None and _qualified_name(registered) != _qualified_name(config):
        raise RuntimeError(f"PEFT already has a method named {peft_type.value}: {_qualified_name(registered)}.")
    for other, prefix in prefixes.items():
        if prefix == tuner.prefix and other != peft_type:
            raise RuntimeError(f"The parameter prefix {prefix!r} belongs to PEFT's method {other}.")
    configs[peft_type] = config
    tuners[peft_type] = tuner
    prefixes[peft_type] = tuner.prefix
    ADAPTERS[config] = tuner


def is_added(name: str) -> bool:
    """Return True if a parameter of a PEFT model belongs to an adapter, ours or PEFT's own, and not to the backbone."""
    return any(part.startswith(tuple(mapping.PEFT_TYPE_TO_PREFIX_MAPPING.values())) for part in name.split("."))


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
