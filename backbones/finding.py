"""Recognizes a backbone's library by the files in ``families/`` and gives the spec of its parts."""

from __future__ import annotations

from torch import nn

from ..errors import DmgalError
from .families import FAMILIES
from .spec import BackboneSpec, base_model


def find_spec(model: nn.Module) -> BackboneSpec:
    """The spec of a backbone, PEFT-wrapped or not.

    Raises:
        DmgalError: no family recognizes it; the message lists the stacks of equal blocks that were seen.
    """
    inner = base_model(model)
    for describe in FAMILIES:
        spec = describe(inner)
        if spec is not None:
            return spec
    raise DmgalError(
        "The parts of this backbone were not recognized.",
        received=f"{type(inner).__module__}.{type(inner).__qualname__}; stacks of equal blocks: {_stacks(inner)}",
        expected="an open_clip ViT or CLIP, or a transformers CLIP (vision model, with projection, or whole)",
        remedy="use one of these, or describe the backbone in a new file beside those in backbones/families",
    )


def _stacks(model: nn.Module) -> str:
    found = [
        f"{name or '(root)'} ({len(module)} x {type(module[0]).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(module) > 1
        and len({type(child) for child in module}) == 1
        and any(True for _ in module[0].children())
    ]
    return ", ".join(found) or "none"
