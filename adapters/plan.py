"""Completion of an adapter config for a backbone, with a check that a saved config belongs to that backbone."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

from torch import nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .block_config import BlockAdapterConfig

FINGERPRINT_TOLERANCE = 0.01
"""Relative tolerance. Casting a backbone to bfloat16 changes its fingerprint by less."""

Config = TypeVar("Config", bound=BlockAdapterConfig)


def resolve(config: Config, spec: BackboneSpec, model: nn.Module) -> Config:
    """Return a completed copy of the config. The config itself stays unchanged and can be used for other backbones.

    Raises:
        DmgalError: the config does not fit the backbone, or belongs to another one.
    """
    fingerprint = spec.fingerprint(model)
    _check_backbone(config, spec, fingerprint)
    config = copy.copy(config)
    config.backbone = config.backbone or getattr(model, "dmgal_name", None)
    config.width, config.num_blocks = spec.width, spec.num_blocks
    config.num_prefix_tokens, config.grid = spec.num_prefix_tokens, list(spec.grid)
    config.fingerprint = fingerprint or config.fingerprint
    config.complete(spec)
    return config


def _check_backbone(config: BlockAdapterConfig, spec: BackboneSpec, fingerprint: list[float] | None) -> None:
    """Raise DmgalError if a completed config, such as that of a saved adapter, belongs to another backbone."""
    saved = {
        "width": config.width,
        "num_blocks": config.num_blocks,
        "num_prefix_tokens": config.num_prefix_tokens,
        "grid": None if config.grid is None else tuple(config.grid),
    }
    differing = [name for name, value in saved.items() if value is not None and value != getattr(spec, name)]
    received = [f"{name} {getattr(spec, name)}" for name in differing]
    expected = [f"{name} {saved[name]}" for name in differing]
    if (
        not differing
        and config.fingerprint
        and fingerprint
        and not _fingerprints_match(config.fingerprint, fingerprint)
    ):
        received = [f"a backbone with the same shape but other weights (fingerprint {fingerprint})"]
        expected = [f"fingerprint {config.fingerprint}"]
    if received:
        raise DmgalError(
            "This adapter belongs to another backbone.",
            received=", ".join(received),
            expected=", ".join(expected),
            remedy=f"Load it into the backbone it was trained on ({config.backbone or 'its name was not saved'}).",
        )


def _fingerprints_match(one: list[float], other: list[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=FINGERPRINT_TOLERANCE) for a, b in zip(one, other, strict=True))
