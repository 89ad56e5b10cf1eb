"""The spec of a backbone: as it says itself, by the files in ``families/``, or found by watching it work."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from ..errors import DmgalError
from .families import FAMILIES, any_vit
from .families.rerun import call_model
from .observation import Run
from .spec import BackboneSpec, base_model


def find_spec(model: nn.Module) -> BackboneSpec:
    """The spec of a backbone, PEFT-wrapped or not.

    ``model.dmgal_spec`` counts first, then the libraries that are known. Any other vision transformer is run on five
    dummy images to find its parts; the spec is then kept as its ``dmgal_spec``.

    Raises:
        DmgalError: the parts were not found; the message lists the stacks of equal blocks that were seen, and says
            what to write by hand.
    """
    inner: Any = base_model(model)
    spec = getattr(inner, "dmgal_spec", None)
    if spec is not None:
        _check_depth(inner, spec)
        return spec
    for describe in FAMILIES:
        spec = describe(inner)
        if spec is not None:
            return spec
    return describe_backbone(inner)


def _check_depth(model: nn.Module, spec: BackboneSpec) -> None:
    blocks = len(list(model.get_submodule(spec.blocks).children()))
    if blocks != spec.num_blocks:
        raise DmgalError(
            "The blocks of this backbone are no longer those of its spec.",
            received=f"{blocks} blocks in {spec.blocks}",
            expected=f"{spec.num_blocks}, as its dmgal_spec says",
            remedy="delete model.dmgal_spec to have it found anew, or give it anew",
        )


def describe_backbone(
    model: nn.Module,
    *,
    blocks: str | None = None,
    image_size: tuple[int, int] | None = None,
    run: Run | None = None,
    **known: Any,
) -> BackboneSpec:
    """Finds the parts of any vision transformer, helped by what is known, and keeps them as ``model.dmgal_spec``.

    The mean and standard deviation are ImageNet's unless they are given, or told by what ``load_backbone`` or timm left
    on the model. A classifier at the model's end counts as its own feature; set it to ``nn.Identity()`` first.

    Args:
        model: PEFT-wrapped or not.
        blocks: path of the stack of blocks, where there are several.
        image_size: height and width of its images, where no attribute tells.
        run: how the model is run on images, ``run(model, images)``, where ``model(images)`` is not it. It returns the
            feature ``(B, D)``, or what has it as ``image_embeds`` or ``pooler_output``.
        known: fields of ``BackboneSpec``, taken as they are: ``mean``, ``std``, ``grid``, ``stem``, ``pool``, ...

    Raises:
        DmgalError: something is still missing, or a field is not one.
    """
    names = [field.name for field in fields(BackboneSpec)]
    if unknown := sorted(set(known) - set(names)):
        raise DmgalError(
            "A backbone cannot be described by this.",
            received=", ".join(unknown),
            expected=", ".join(names),
            remedy="check the names",
        )
    inner: Any = base_model(model)
    inner.dmgal_spec = any_vit.describe(inner, run or call_model, blocks, image_size, known)
    return inner.dmgal_spec
