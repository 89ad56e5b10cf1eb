"""Completes a config from the backbone it meets, and refuses a backbone it was not made for."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

from torch import nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .block_config import BlockAdapterConfig

FINGERPRINT_TOLERANCE = 0.01
"""Relative; casting a backbone to bfloat16 changes its fingerprint by less."""

Config = TypeVar("Config", bound=BlockAdapterConfig)


def resolve(config: Config, spec: BackboneSpec, model: nn.Module) -> Config:
    """A copy with everything filled in that was left open; a config may be used for any number of backbones.

    Raises:
        DmgalError: the config does not fit the backbone, or was made for another one.
    """
    fingerprint = spec.fingerprint(model)
    _match(config, spec, fingerprint)
    config = copy.copy(config)
    config.backbone = config.backbone or getattr(model, "dmgal_name", None)
    config.width, config.num_blocks = spec.width, spec.num_blocks
    config.num_prefix_tokens, config.grid = spec.num_prefix_tokens, list(spec.grid)
    config.fingerprint = fingerprint or config.fingerprint
    config.complete(spec)
    return config


def _match(config: BlockAdapterConfig, spec: BackboneSpec, fingerprint: list[float] | None) -> None:
    """A config that was completed before (it came from a saved adapter) must meet the same backbone again."""
    wanted = {
        "width": config.width,
        "num_blocks": config.num_blocks,
        "num_prefix_tokens": config.num_prefix_tokens,
        "grid": None if config.grid is None else tuple(config.grid),
    }
    differing = [name for name, value in wanted.items() if value is not None and value != getattr(spec, name)]
    received = [f"{name} {getattr(spec, name)}" for name in differing]
    expected = [f"{name} {wanted[name]}" for name in differing]
    if not differing and config.fingerprint and fingerprint and not _close(config.fingerprint, fingerprint):
        received = [f"a backbone with the same shape and other weights (fingerprint {fingerprint})"]
        expected = [f"fingerprint {config.fingerprint}"]
    if received:
        raise DmgalError(
            "This adapter was made for another backbone.",
            received=", ".join(received),
            expected=", ".join(expected),
            remedy=f"load it into the backbone it was trained on ({config.backbone or 'its name was not saved'})",
        )


def _close(one: list[float], other: list[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=FINGERPRINT_TOLERANCE) for a, b in zip(one, other, strict=True))
