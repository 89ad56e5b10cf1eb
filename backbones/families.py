"""Registry of the families of backbones, loading of a backbone by name, and lookup of its spec.

A backbone is bundled, from a library's hub, or in a local folder. Its spec is the model's own ``dmgal_spec``, that of a
family, or the result of observing a forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import nn

from ..errors import FROM_OUTSIDE, DmgalError
from ..files import check_regular, read_mapping, reason
from . import any_vit, open_clip_vit, timm_vit, tiny_clip, transformers_video, transformers_vit
from .probing import Run
from .replay import call_model
from .spec import BackboneSpec, base_model
from .text import TextEncoder

Loaded = TypeVar("Loaded")


class Family(NamedTuple):
    """Backbones of one library.

    Attributes:
        describe: returns the spec of a model of the library, or None for any other model.
        load: returns the model of a name in evaluation mode.
        names: forms of the names, for error messages.
        load_text: returns the text tower that belongs to the model of a name, or None if it has none.
    """

    describe: Callable[[nn.Module], BackboneSpec | None]
    load: Callable[[str], nn.Module]
    names: tuple[str, ...] = ("NAME",)
    load_text: Callable[[str], TextEncoder | None] | None = None


def _describe_transformers(model: nn.Module) -> BackboneSpec | None:
    return transformers_vit.describe(model) or transformers_video.describe(model)


FAMILIES = {
    "open_clip": Family(
        open_clip_vit.describe, open_clip_vit.load, ("MODEL", "MODEL/WEIGHTS"), open_clip_vit.load_text
    ),
    "hf": Family(_describe_transformers, transformers_vit.load, ("REPOSITORY",), transformers_vit.load_text),
    "timm": Family(timm_vit.describe, timm_vit.load, ("MODEL", "MODEL.WEIGHTS")),
}
"""Families by the prefix of their names, as in ``load_backbone("timm:MODEL")``. Later ones are asked first."""


def load_backbone(name: str) -> nn.Module:
    """Load a backbone in evaluation mode and float32. For CLIP and SigLIP, this is the visual tower.

    Args:
        name: ``"tiny-clip"`` (bundled); ``"open_clip:ViT-B-16/openai"``; ``"hf:facebook/dinov2-base"``;
            ``"timm:vit_base_patch16_224.augreg_in21k"``; or a folder of transformers (``config.json``), of open_clip
            (``open_clip_config.json``) or of timm (``config.json`` with an architecture). Without weights in the name,
            as in ``"open_clip:ViT-B-16"`` or ``"timm:vit_base_patch16_224"``, the weights are random.

    Raises:
        DmgalError: the name is unknown, or the weights cannot be reached or read.
    """
    family, rest = _resolve(name)
    model = _load_or_explain(name, lambda: family.load(rest))
    vars(model)["dmgal_name"] = name  # saved with an adapter, to record which backbone it belongs to
    return model


def load_text_encoder(name: str) -> TextEncoder:
    """Load the frozen text tower of a CLIP, SigLIP or SigLIP 2, with its tokenizer, in float32.

    Args:
        name: as in ``load_backbone``, whose projected frame features can then be compared with text.

    Raises:
        DmgalError: the backbone has no text tower, the name is unknown, or the weights cannot be reached or read.
    """
    family, rest = _resolve(name)
    load = family.load_text
    encoder = None if load is None else _load_or_explain(name, lambda: load(rest))
    if encoder is None:
        raise DmgalError(
            "This backbone has no text tower.",
            received=name,
            expected="a CLIP of open_clip or transformers, a SigLIP, or tiny-clip",
            remedy="Choose such a backbone, or recognize by clips alone.",
        )
    named: TextEncoder = replace(encoder, name=name)
    return named


def _resolve(name: str) -> tuple[Family, str]:
    """Return the family of a backbone's name, and the name within the family."""
    prefix, _, rest = name.partition(":")
    if name == "tiny-clip":
        return FAMILIES["open_clip"], f"local-dir:{tiny_clip.FOLDER}"
    if os.path.isdir(name):
        return _resolve_folder(Path(name))
    if prefix in FAMILIES and rest:
        return FAMILIES[prefix], rest
    forms = [f"{prefix}:{form}" for prefix, family in FAMILIES.items() for form in family.names]
    raise DmgalError(
        "Unknown backbone.",
        received=name,
        expected=f"{', '.join(['tiny-clip', *forms])}, or a folder with a model",
        remedy=f"Check the name, or that the folder exists. {FROM_OUTSIDE}",
    )


def _resolve_folder(folder: Path) -> tuple[Family, str]:
    _check_files(folder)
    if (folder / "open_clip_config.json").is_file():
        return FAMILIES["open_clip"], f"local-dir:{folder}"
    config = folder / "config.json"
    if not config.is_file():
        raise DmgalError(
            "This folder contains no backbone.",
            received=str(folder),
            expected="a config.json (transformers, timm) or open_clip_config.json (open_clip) beside safetensors",
            remedy="Use a folder written by save_pretrained, or by timm's save_for_hf with safe_serialization=True.",
        )
    problem, remedy = "The configuration of this backbone cannot be read.", "Download or save the backbone again."
    if "architecture" in read_mapping(config, problem, remedy):
        return FAMILIES["timm"], f"local-dir:{folder}"
    return FAMILIES["hf"], str(folder)


def _check_files(folder: Path) -> None:
    """Raise a DmgalError if a file of a model is a pipe or a device, for which its library would wait."""
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".safetensors"):
                check_regular(path)
    except OSError as error:
        raise DmgalError(
            "A file of this backbone cannot be read.",
            received=f"{path}: {reason(error)}",
            expected="the files that the model's library wrote",
            remedy="Download or save the backbone again.",
        ) from error


def _load_or_explain(name: str, load: Callable[[], Loaded]) -> Loaded:
    """Load a model and turn the various errors of libraries, e.g. without a network, into one message."""
    try:
        return load()
    except DmgalError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise DmgalError(
            "This backbone could not be loaded.",
            received=f"{name}: {type(error).__name__}: {text[:300]}",
            expected="weights that are reachable over the network, in the local cache, or in a folder",
            remedy="To download it, go online once. Set HF_HUB_OFFLINE=1 to load it from the local cache. "
            "Or download it elsewhere and pass its folder.",
        ) from error


def find_spec(model: nn.Module, store: bool = True) -> BackboneSpec:
    """Return the spec of a backbone, which may be wrapped by PEFT.

    ``model.dmgal_spec`` takes precedence, followed by ``FAMILIES``. Any other backbone is run on five
    dummy images to find its parts. If ``store``, the spec is then stored as its ``dmgal_spec``.

    Raises:
        DmgalError: the parts were not found. The message lists the stacks of equal blocks in the model and explains
            how to describe it by hand.
    """
    inner = base_model(model)
    spec = getattr(inner, "dmgal_spec", None)
    if spec is not None:
        _check_depth(inner, spec)
        return spec
    for family in reversed(FAMILIES.values()):
        spec = family.describe(inner)
        if spec is not None:
            return spec
    return describe_backbone(inner) if store else any_vit.describe(inner)


def _check_depth(model: nn.Module, spec: BackboneSpec) -> None:
    blocks = spec.num_blocks if spec.sides else len(list(model.get_submodule(spec.blocks).children()))
    if blocks != spec.num_blocks:
        raise DmgalError(
            "The number of blocks in this backbone differs from its spec.",
            received=f"{blocks} blocks in {spec.blocks}",
            expected=f"{spec.num_blocks}, as in its dmgal_spec",
            remedy="Delete model.dmgal_spec so that the spec is found again, or set a new one.",
        )


def describe_backbone(
    model: nn.Module,
    *,
    blocks: str | None = None,
    image_size: tuple[int, int] | None = None,
    run: Run | None = None,
    **known: object,
) -> BackboneSpec:
    """Find the parts of any backbone, with the help of known parts, and store them in ``model.dmgal_spec``.

    The mean and standard deviation are those in ``known``, else those that ``load_backbone`` or timm stored on the
    model, else ImageNet's. The output of a final classifier counts as the model's own feature. Replace the classifier
    by ``nn.Identity()`` first to use the feature before it.

    Args:
        model: the backbone, which may be wrapped by PEFT.
        blocks: path of the stack of blocks, if there are several stacks.
        image_size: height and width of the images, if no attribute of the model contains them.
        run: ``run(model, images)``, if ``model(images)`` is not the right call. It returns the feature ``(B, D)``, or
            an output with that feature as ``image_embeds`` or ``pooler_output``.
        known: fields of ``BackboneSpec``, used without a check: ``mean``, ``std``, ``grid``, ``stem``, ``pool``, ...

    Raises:
        DmgalError: a part is still missing, or a name in ``known`` is not a field.
    """
    names = [field.name for field in fields(BackboneSpec)]
    if unknown := sorted(set(known) - set(names)):
        raise DmgalError(
            "Unknown fields in the description of a backbone.",
            received=", ".join(unknown),
            expected=", ".join(names),
            remedy="Check the names.",
        )
    inner = base_model(model)
    spec = any_vit.describe(inner, run or call_model, blocks, image_size, known)
    vars(inner)["dmgal_spec"] = spec
    return spec
