"""Lookup of a backbone's spec: its own ``dmgal_spec``, a known family, or observation of a forward pass.

Each file of a library describes one family, and ``FAMILIES`` lists them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from ..errors import DmgalError
from . import any_vit, timm_vit, transformers_vit
from . import open_clip_vit as open_clip
from .probing import Run
from .replay import call_model
from .spec import BackboneSpec, base_model


def find_spec(model: nn.Module, store: bool = True) -> BackboneSpec:
    """Return the spec of a backbone, which may be wrapped by PEFT.

    ``model.dmgal_spec`` takes precedence, followed by the known libraries. Any other vision transformer is run on five
    dummy images to find its parts. If ``store``, the spec is then stored as its ``dmgal_spec``.

    Raises:
        DmgalError: the parts were not found. The message lists the stacks of equal blocks in the model and explains
            how to describe it by hand.
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
    return describe_backbone(inner) if store else any_vit.describe(inner)


def _check_depth(model: nn.Module, spec: BackboneSpec) -> None:
    blocks = len(list(model.get_submodule(spec.blocks).children()))
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
    **known: Any,
) -> BackboneSpec:
    """Find the parts of any vision transformer, with the help of known parts, and store them in ``model.dmgal_spec``.

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
    inner: Any = base_model(model)
    inner.dmgal_spec = any_vit.describe(inner, run or call_model, blocks, image_size, known)
    return inner.dmgal_spec


FAMILIES = (open_clip.describe, transformers_vit.describe, timm_vit.describe)
