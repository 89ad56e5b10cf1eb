"""Completes a ``DmgalConfig`` from the backbone it meets, and refuses a backbone it was not made for."""

from __future__ import annotations

import copy
import math

from torch import nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .config import DmgalConfig

FINGERPRINT_TOLERANCE = 0.01
"""Relative; casting a backbone to bfloat16 changes its fingerprint by less."""


def resolve(config: DmgalConfig, spec: BackboneSpec, model: nn.Module) -> DmgalConfig:
    """A copy with everything filled in that was left open; a config may be used for any number of backbones.

    Raises:
        DmgalError: the config names blocks that do not exist or one block twice, or was made for another backbone.
    """
    fingerprint = spec.fingerprint(model)
    _match(config, spec, fingerprint)
    config = copy.copy(config)
    depth = spec.num_blocks
    cmga = [depth - 1] if config.cmga_blocks is None else _indices("cmga_blocks", config.cmga_blocks, depth)
    rest = [index for index in range(depth) if index not in cmga]
    smga = rest if config.smga_blocks is None else _indices("smga_blocks", config.smga_blocks, depth)
    both = sorted(set(smga) & set(cmga))
    if both or not smga + cmga:
        raise DmgalError(
            "The adapters cannot be placed.",
            received=f"smga_blocks={config.smga_blocks}, cmga_blocks={config.cmga_blocks}",
            expected="at least one block, and no block in both lists",
            remedy=f"take {both} out of one list" if both else "name a block in one of the lists",
        )
    config.smga_blocks, config.cmga_blocks = smga, cmga
    config.bottleneck = config.bottleneck or max(1, spec.width // 4)
    config.motion_width = config.motion_width or max(8, spec.width // 32)
    config.backbone = config.backbone or getattr(model, "dmgal_name", None)
    config.width, config.num_blocks = spec.width, depth
    config.num_prefix_tokens, config.grid = spec.num_prefix_tokens, list(spec.grid)
    config.fingerprint = fingerprint or config.fingerprint
    return config


def _indices(name: str, blocks: list[int], depth: int) -> list[int]:
    if not isinstance(blocks, (list, tuple)) or not all(isinstance(index, int) for index in blocks):
        raise DmgalError(
            "An adapter's blocks are a list of indices.",
            received=f"{name}={blocks!r}",
            expected=f"a list of whole numbers from {-depth} to {depth - 1}, or None",
            remedy=f"write {name}=[...]",
        )
    outside = [index for index in blocks if not -depth <= index < depth]
    if outside:
        raise DmgalError(
            "An adapter was asked for behind a block that does not exist.",
            received=f"{name}={list(blocks)}",
            expected=f"indices from {-depth} to {depth - 1}: the backbone has {depth} blocks",
            remedy=f"take {outside} out",
        )
    return sorted({index % depth for index in blocks})


def _match(config: DmgalConfig, spec: BackboneSpec, fingerprint: list[float] | None) -> None:
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
