"""The adapter of a recipe: new by its PEFT config, saved by a run, or a trained one to continue from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn

from dmgal.adapters import METHODS, BlockAdapterConfig, check_precision, is_added, load_adapter, pretrained, targets
from dmgal.adapters.attention_weights import keep_attention_weights
from dmgal.adapters.model_card import command_line
from dmgal.backbones import find_spec
from dmgal.errors import FROM_OUTSIDE, DmgalError
from dmgal.files import listed, open_regular, read_mapping, reason
from dmgal.recipes.run.config import Recipe

if TYPE_CHECKING:
    from peft import PeftConfig

Built = TypeVar("Built")

PROMPTS = {
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
    "CARTRIDGE",
}
"""Methods of PEFT for language models."""
UNREADABLE_ADAPTER, COPY_AGAIN = "A saved adapter cannot be read.", "Copy it again, or train it again."


def adapted(backbone: nn.Module, recipe: Recipe, folder: Path | None) -> nn.Module:
    """Return the backbone with the recipe's adapter, or with the one saved in a folder.

    Raises:
        DmgalError: the options or the files do not fit the backbone, or recipes cannot train this method.
    """
    import peft

    if folder is None:
        folder = _start(recipe)
    if folder is not None:
        _check_adapter(recipe, folder)
        arguments = {"backbone": backbone, "folder": str(folder), "is_trainable": True}
        model = construct(f"adapter of {folder}", load_adapter, arguments, Exception)
        check_tensors(model, folder)
    else:
        config = _adapter_config(recipe, backbone)
        model = construct("adapter", lambda: peft.get_peft_model(backbone, config), {}, Exception)
    keep_attention_weights(model)
    if recipe.train.steps and hasattr(model.base_model, "update_and_allocate"):
        raise DmgalError(
            "This PEFT method needs a call of its own after each step, and a state that no checkpoint holds.",
            received=f"adapter.peft_type: {model.active_peft_config.peft_type.value}",
            expected="a method that an optimizer alone trains, such as LORA",
            remedy="Choose another adapter.peft_type.",
        )
    if recipe.backbone.trainable:  # PEFT freezes what it wraps
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or not is_added(name))
    return model


def _start(recipe: Recipe) -> Path | None:
    """Return the folder of the trained adapter that the recipe starts from, if it does."""
    options = dict(recipe.adapter or {})
    if not recipe.is_continued:
        return None
    start, others = options["start"], sorted(options.keys() - {"peft_type", "start"})
    if others or not isinstance(start, str):
        raise DmgalError(
            "A trained adapter has its own options.",
            received=", ".join(f"adapter.{name}: {options[name]}" for name in others or ["start"]),
            expected="adapter.start, the name or folder of a trained adapter, and no other options",
            remedy="Remove the other options, or adapter.start to train a new adapter.",
        )
    return Path(pretrained(start))


def _check_adapter(recipe: Recipe, folder: Path) -> None:
    """Raise a DmgalError if a saved adapter cannot be read, or is of another kind than the recipe's."""
    kind, saved = (recipe.adapter or {}).get("peft_type"), check_adapter_files(folder)
    if kind not in (None, saved):
        raise DmgalError(
            UNREADABLE_ADAPTER,
            received=f"{folder / 'adapter_config.json'}: peft_type {saved!r}",
            expected=f"an adapter of the type {kind}, as in the recipe",
            remedy=COPY_AGAIN,
        )


def check_adapter_files(folder: Path) -> object:
    """Return the type of a saved adapter. Raise a DmgalError if its files cannot be read.

    PEFT would wait for a pipe, and look for a missing file on the hub or for one in a format that can run code.
    """
    config = read_mapping(folder / "adapter_config.json", UNREADABLE_ADAPTER, COPY_AGAIN)
    for name in ("peft_type", "base_model_name_or_path", "revision", "task_type"):
        if not isinstance(config.get(name), str | None):
            raise DmgalError(
                UNREADABLE_ADAPTER,
                received=f"{folder / 'adapter_config.json'}: {name} {config[name]!r}",
                expected="text or null",
                remedy=COPY_AGAIN,
            )
    weights = folder / "adapter_model.safetensors"
    try:
        open_regular(weights).close()
    except OSError as error:
        expected = "the weights that dmgal train wrote"
        received = f"{weights}: {reason(error)}"
        raise DmgalError(UNREADABLE_ADAPTER, received=received, expected=expected, remedy=COPY_AGAIN) from error
    return config.get("peft_type")


def check_tensors(model: nn.Module, folder: Path) -> None:
    """Raise a DmgalError if a saved adapter lacks weights of a model. PEFT would leave them at their initial values."""
    import peft

    wanted = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        missing = sorted(wanted.difference(file.keys()))
    if missing:
        raise DmgalError(
            "A saved adapter is incomplete.",
            received=f"{folder / 'adapter_model.safetensors'} without {listed(missing)}",
            expected=f"{len(wanted)} tensors",
            remedy=COPY_AGAIN,
        )


def _adapter_config(recipe: Recipe, backbone: nn.Module) -> PeftConfig:
    import peft

    options = dict(recipe.adapter or {})
    known: dict[str, type[PeftConfig]] = dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items())
    kind = options.pop("peft_type", None)
    if not isinstance(kind, str) or kind not in known:
        raise DmgalError(
            "This adapter is unknown.",
            received=f"adapter.peft_type: {kind!r}",
            expected=f"one of {', '.join(sorted({*known} - PROMPTS))}",
            remedy=f"Correct adapter.peft_type. {FROM_OUTSIDE}",
        )
    if kind in PROMPTS:
        raise DmgalError(
            "This PEFT method learns prompts of a language model. A vision model has no words to put them before.",
            received=f"adapter.peft_type: {kind}",
            expected="a method that changes the layers of a vision model, such as DMGAL or LORA",
            remedy="Choose another adapter.peft_type.",
        )
    parameters = inspect.signature(known[kind]).parameters
    base = BlockAdapterConfig if issubclass(known[kind], BlockAdapterConfig) else peft.PeftConfig
    own = [name for name in parameters if name not in inspect.signature(base).parameters]
    refuse_unknown("adapter", kind, [name for name in options if name not in parameters], own)
    check_precision(backbone, kind, **options)
    if kind in METHODS and options.get("target_modules") is None:
        options |= targets(backbone, kind, **options)
    if "num_frames" in parameters:
        options.setdefault("num_frames", find_spec(backbone).num_steps(recipe.data.num_frames))
    if "command" in parameters:
        options.setdefault("command", command_line())
    return construct(f"adapter {kind}", known[kind], options, Exception)


def construct(
    what: str,
    constructor: Callable[..., Built],
    arguments: Mapping[str, object],
    errors: type[Exception] | tuple[type[Exception], ...] = (TypeError, ValueError, SafetensorError),
) -> Built:
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


def refuse_unknown(section: str, kind: object, options: Iterable[str], parameters: Collection[str]) -> None:
    """Raise a DmgalError if a class lacks one of the options of a section of the recipe."""
    unknown = [key for key in options if key not in parameters]
    if unknown:
        nearest = get_close_matches(unknown[0], parameters, n=1)
        raise DmgalError(
            f"The {section} has no such options.",
            received=", ".join(f"{section}.{key}" for key in unknown),
            expected=f"for {kind}: {', '.join(parameters)}",
            remedy=f"Check the name: did you mean {section}.{nearest[0]}?" if nearest else "Remove these options.",
        )
