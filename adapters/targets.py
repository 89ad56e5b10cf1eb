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

from torch import nn

from ..backbones import Quantization, quantization_of
from ..backbones.called_layers import called_layers
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
MERGES = frozenset({"BOFT", "OFT", "MISS", "VERA"})
"""Methods that refuse layers of torchao, because they could not quantize merged weights again."""
NEEDS_FLOATS: dict[Quantization, frozenset[str]] = {
    "int8": MERGES,
    "int4": MERGES | {"DORA"},
    "dynamic_int8": frozenset(METHODS) - {"LN_TUNING"} | {"DORA"},
    "bnb_int8": frozenset({"DORA"}),
    "bnb_nf4": frozenset({"LOHA", "LOKR"}),
}
"""Methods of PEFT that do not work on a quantized backbone, found by ``dmgal.bench.capabilities``."""


def targets(backbone: nn.Module, method: str, **options: object) -> dict[str, Any]:
    """Return the options of a PEFT config that name the layers of a backbone: ``target_modules``, and IA3's others.

    Args:
        backbone: the backbone, without adapters.
        method: one of `METHODS`.
        options: other options of the config. DoRA (``use_dora``) does not adapt torch's attention.

    Raises:
        DmgalError: the method is unknown, needs the weights as floats, or no block calls a layer that it adapts.
    """
    if method not in METHODS:
        raise DmgalError(
            "The layers of this PEFT method cannot be chosen.",
            received=method,
            expected=f"one of {', '.join(METHODS)}",
            remedy="Set target_modules.",
        )
    check_precision(backbone, method, **options)
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
    chosen: dict[str, object] = {"target_modules": sorted(layers)}
    if method == "IA3":  # it scales the input of a feed-forward layer and the output of the others
        chosen["feedforward_modules"] = sorted(name for name, layer in layers.items() if _contracts(layer))
    return chosen


def check_precision(backbone: nn.Module, method: str, **options: object) -> None:
    """Raise a DmgalError if a method of PEFT does not work on the backbone because it is quantized.

    Args:
        backbone: see `targets`.
        method: see `targets`.
        options: see `targets`.
    """
    quantization, variant = quantization_of(backbone), "DORA" if options.get("use_dora") else method
    if quantization is not None and {method, variant} & NEEDS_FLOATS[quantization]:
        others = [kind for kind, refused in NEEDS_FLOATS.items() if not {method, variant} & refused]
        raise DmgalError(
            "This method of PEFT needs the weights as floats.",
            received=f"{variant} on a backbone quantized to {quantization}",
            expected=f"a backbone that is not quantized, or one in {' or '.join(others)}"
            if others
            else "a backbone that is not quantized",
            remedy="Change backbone.quantize, or use another adapter.",
        )


def _adapted_layers(backbone: nn.Module, reach: Reach) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and layers of all blocks."""
    for called in called_layers(backbone, (*reach.preferred, *reach.otherwise)):
        block = {name: layer for name, layer in called.items() if getattr(layer, "groups", 1) == 1}  # PEFT's limit
        preferred = {name: layer for name, layer in block.items() if isinstance(layer, reach.preferred)}
        yield from (preferred or block).items()


def _contracts(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features > layer.out_features
