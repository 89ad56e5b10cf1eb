"""Layers of a backbone that PEFT's own methods adapt, found by observing a forward pass.

    options = dmgal.adapters.targets(backbone, "LOHA")
    model = peft.get_peft_model(backbone, peft.LoHaConfig(r=4, **options))

Libraries name their layers differently, and some layers are never called: their weights are read by another layer, so
that an adapter around them would have no effect. The layers are therefore those of the blocks that a forward pass
calls. Linear layers are preferred. In a block without any, they are its convolutions, if the method adapts these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backbones.families import find_spec
from ..backbones.probing import evaluating
from ..errors import DmgalError

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Reach:
    """The kinds of layers that a method of PEFT adapts.

    Args:
        preferred: layers that it adapts in every block that has any.
        otherwise: layers that it adapts in the other blocks.
    """

    preferred: tuple[type[nn.Module], ...] = (nn.Linear,)
    otherwise: tuple[type[nn.Module], ...] = ()


WITH_CONVOLUTIONS = Reach(otherwise=(nn.Conv2d,))
METHODS = {
    "LORA": Reach((nn.Linear, nn.MultiheadAttention), (nn.Conv2d,)),
    "LOHA": WITH_CONVOLUTIONS,
    "LOKR": WITH_CONVOLUTIONS,
    "IA3": WITH_CONVOLUTIONS,
    "BOFT": WITH_CONVOLUTIONS,
    "OFT": Reach(),
    "VERA": Reach(),
    "RANDLORA": Reach(),
    "FOURIERFT": Reach(),
    "MISS": Reach(),
    "BEFT": Reach(),
    "LN_TUNING": Reach(NORMS),
}
"""Methods of PEFT whose layers can be chosen, by their ``peft_type``."""


def targets(backbone: nn.Module, method: str, **options: Any) -> dict[str, Any]:
    """Return the options of a PEFT config that name the layers of a backbone: ``target_modules``, and IA3's others.

    Args:
        backbone: the backbone, without adapters.
        method: one of `METHODS`.
        options: other options of the config. DoRA (``use_dora``) does not adapt torch's attention.

    Raises:
        DmgalError: the method is unknown, or no block calls a layer that it adapts.
    """
    if method not in METHODS:
        raise DmgalError(
            "The layers of this PEFT method cannot be chosen.",
            received=method,
            expected=f"one of {', '.join(METHODS)}",
            remedy="Set target_modules.",
        )
    reach = METHODS[method]
    if options.get("use_dora"):
        reach = WITH_CONVOLUTIONS
    layers = dict(_adapted_layers(backbone, reach))
    if not layers:
        kinds = " or ".join(kind.__name__ for kind in (*reach.preferred, *reach.otherwise))
        raise DmgalError(
            f"{method} is not supported on this backbone.",
            received=f"blocks that call no layer of the kind {kinds}",
            expected=f"blocks with layers that {method} adapts",
            remedy="Use another method, or another backbone.",
        )
    chosen: dict[str, Any] = {"target_modules": sorted(layers)}
    if method == "IA3":  # it scales the input of a feed-forward layer and the output of the others
        chosen["feedforward_modules"] = sorted(name for name, layer in layers.items() if _contracts(layer))
    return chosen


def _adapted_layers(backbone: nn.Module, reach: Reach) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and layers of all blocks."""
    for block in _called_layers(backbone, (*reach.preferred, *reach.otherwise)):
        preferred = {name: layer for name, layer in block.items() if isinstance(layer, reach.preferred)}
        yield from (preferred or block).items()


@torch.no_grad()
def _called_layers(backbone: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[dict[str, nn.Module]]:
    """Run one image, and return the layers of some kinds that each block calls, by their names."""
    spec = find_spec(backbone)
    blocks = {name: backbone.get_submodule(name) for name in spec.block_names()}
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: called.add(module))
        for block in blocks.values()
        for module in block.modules()
        if isinstance(module, kinds) and _is_adaptable(module)
    ]
    weight = backbone.get_parameter(f"{spec.patch_embedding}.weight")
    try:
        with evaluating(backbone):
            tokens = spec.entry.native(spec.stem(backbone, weight.new_zeros(1, 3, *spec.image_size)))
            for block in blocks.values():
                tokens = spec.run_block(backbone, block, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return [
        {f"{path}.{name}" if name else path: module for name, module in block.named_modules() if module in called}
        for path, block in blocks.items()
    ]


def _is_adaptable(layer: nn.Module) -> bool:
    """Return False for layers without weights, and for grouped convolutions, which PEFT's methods do not adapt."""
    return any(True for _ in layer.parameters()) and getattr(layer, "groups", 1) == 1


def _contracts(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features > layer.out_features
