"""Construction of a recipe's parts: catalog, recognizer and test clips."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dmgal.adapters import is_added
from dmgal.adapters.model_card import command_line
from dmgal.backbones import load_backbone, make_encoder, use_memory_efficient_gelu
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import HEADS
from dmgal.episodes.recognizer import Head
from dmgal.errors import DmgalError
from dmgal.files import listed, open_regular, read_mapping, reason
from dmgal.recipes.run.config import Recipe
from dmgal.videos import VideoCatalog


def build_recognizer(
    recipe: Recipe, *, backbone: nn.Module | None = None, head: nn.Module | None = None, adapter: Path | None = None
) -> FewShotRecognizer:
    """Return the recognizer of a recipe. Only trained parameters require gradients.

    Args:
        backbone, head: replace those of the recipe.
        adapter: folder of a trained adapter to load. None: inject a new adapter if the recipe has one.
    """
    backbone = load_backbone(recipe.backbone.name) if backbone is None else backbone
    backbone.requires_grad_(recipe.backbone.trainable)
    if recipe.adapter is not None:
        backbone = _adapted(backbone, recipe, adapter)
    use_memory_efficient_gelu(backbone)
    encoder = make_encoder(backbone, recipe.backbone.pooling, recipe.backbone.checkpoint_blocks)
    if head is None:
        head = build_head(recipe.head, channels=encoder.feature_width, num_frames=recipe.data.num_frames)
    return FewShotRecognizer(encoder, cast(Head, head))


def with_base_classes(recipe: Recipe, catalog: VideoCatalog) -> Recipe:
    """Return the recipe with ``head.num_base_classes`` filled in if the head has it and the recipe does not."""
    num_base_classes = (catalog.class_splits or ()).count("train")
    wanted = "num_base_classes" in inspect.signature(_head_class(recipe.head.get("name"))).parameters
    if not wanted or not num_base_classes:
        return recipe
    return replace(recipe, head={"num_base_classes": num_base_classes, **recipe.head})


def build_head(options: Mapping[str, Any], **known: Any) -> nn.Module:
    """Build a head from its name in ``dmgal.episodes.heads.HEADS`` and its arguments.

    Values in ``known`` fill in the parameters that the class has.
    """
    options = dict(options)
    name = options.pop("name", None)
    cls = _head_class(name)
    parameters = inspect.signature(cls).parameters
    _refuse_unknown("head", name, options, parameters)
    arguments = {key: build_head(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return _construct(f"head {name}", cls, {**{k: v for k, v in known.items() if k in parameters}, **arguments})


def _head_class(name: object) -> type[nn.Module]:
    if not isinstance(name, str) or name not in HEADS:
        raise DmgalError(
            "This head is unknown.",
            received=repr(name),
            expected=f"one of {', '.join(HEADS)}",
            remedy="Correct head.name.",
        )
    return HEADS[name]


def _adapted(backbone: nn.Module, recipe: Recipe, folder: Path | None) -> nn.Module:
    import peft

    import dmgal.adapters  # noqa: F401  (registers our adapters with PEFT)

    if folder is not None:
        _check_adapter(recipe, folder)
        arguments = {"model": backbone, "model_id": str(folder), "is_trainable": True}
        model = _construct(f"adapter of {folder}", peft.PeftModel.from_pretrained, arguments, Exception)
        _check_tensors(set(peft.get_peft_model_state_dict(model)), folder)
    else:
        config = _adapter_config(recipe)
        model = _construct("adapter", peft.get_peft_model, {"model": backbone, "peft_config": config})
    if recipe.backbone.trainable:  # PEFT freezes what it wraps
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or not is_added(name))
    return model


def _check_adapter(recipe: Recipe, folder: Path) -> None:
    """Raise a DmgalError if the files of a saved adapter cannot be read, or are of another kind than the recipe's.

    PEFT would wait for a pipe, and look for a missing file on the hub or for one in a format that can run code.
    """
    remedy = "Copy the run again."
    config = read_mapping(folder / "adapter_config.json", "The adapter of this run cannot be read.", remedy)
    kind = (recipe.adapter or {}).get("peft_type")
    weights = folder / "adapter_model.safetensors"
    try:
        open_regular(weights).close()
        problem = f"{folder / 'adapter_config.json'}: peft_type {config.get('peft_type')!r}"
        expected = f"an adapter of the type {kind}, as in the recipe"
        if config.get("peft_type") == kind:
            return
    except OSError as error:
        problem, expected = f"{weights}: {reason(error)}", "the weights that dmgal train wrote"
    raise DmgalError("The adapter of this run cannot be read.", received=problem, expected=expected, remedy=remedy)


def _check_tensors(wanted: set[str], folder: Path) -> None:
    """Raise a DmgalError if a saved adapter lacks weights. PEFT would leave them at their initial values."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        missing = sorted(wanted.difference(file.keys()))
    if missing:
        raise DmgalError(
            "The adapter of this run is incomplete.",
            received=f"{folder / 'adapter_model.safetensors'} without {listed(missing)}",
            expected=f"{len(wanted)} tensors",
            remedy="Copy the run again.",
        )


def _construct(
    what: str,
    constructor: Callable[..., Any],
    arguments: Mapping[str, Any],
    errors: type[Exception] | tuple[type[Exception], ...] = (TypeError, ValueError, SafetensorError),
) -> Any:
    """Call a constructor. Report its errors as the user's, because the arguments come from files and command lines."""
    try:
        return constructor(**arguments)
    except DmgalError:
        raise
    except errors as error:
        raise DmgalError(
            f"The {what} cannot be built.",
            received=" ".join(str(error).split())[:300],
            expected="valid options, and files that fit them",
            remedy="Correct the options, or pass the folder of a complete run.",
        ) from error


def _adapter_config(recipe: Recipe) -> Any:
    import peft

    options = dict(recipe.adapter or {})
    known = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    kind = options.pop("peft_type", None)
    if kind not in known:
        raise DmgalError(
            "This adapter is unknown.",
            received=f"adapter.peft_type: {kind!r}",
            expected=f"one of {', '.join(sorted(map(str, known)))}",
            remedy="Correct adapter.peft_type.",
        )
    parameters = inspect.signature(known[kind]).parameters
    _refuse_unknown("adapter", kind, options, parameters)
    if "num_frames" in parameters:
        options.setdefault("num_frames", recipe.data.num_frames)
    if "command" in parameters:
        options.setdefault("command", command_line())
    return _construct(f"adapter {kind}", known[kind], options)


def _refuse_unknown(section: str, kind: object, options: Iterable[str], parameters: Collection[str]) -> None:
    unknown = [key for key in options if key not in parameters]
    if unknown:
        raise DmgalError(
            f"The {section} has no such options.",
            received=", ".join(f"{section}.{key}" for key in unknown),
            expected=f"for {kind}: {', '.join(parameters)}",
            remedy="Remove these options.",
        )


def count_parameters(module: nn.Module, trained_only: bool = False) -> int:
    """Return the number of elements in a module's parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)


def visual_tower_parameters(recognizer: FewShotRecognizer) -> int:
    """Return the number of backbone parameters, without adapters."""
    backbone = recognizer.encoder.backbone
    return sum(p.numel() for name, p in backbone.named_parameters() if not is_added(name))


def freeze_batch_norm(recognizer: nn.Module) -> None:
    """Make batch norms use their stored statistics. Call it after every ``train()``."""
    for module in recognizer.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            module.eval()


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of the weights. Half precisions keep their weights in float32."""
    return torch.float64 if precision == "float64" else torch.float32
