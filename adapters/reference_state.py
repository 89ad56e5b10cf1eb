"""Loading weights under the names of the authors' released code into modules that name their parts otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ..errors import DmgalError


def load_reference_state(
    module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], ignored: Collection[str] = ()
) -> None:
    """Fill all of ``module`` from ``state``; nothing is changed where a name or a shape does not fit.

    Args:
        module: the module to fill.
        state: tensors under the authors' names.
        names: the authors' name of a parameter, or of a submodule with parameters, to ours.
        ignored: authors' names that stand for nothing that is learned, or that their forward never uses.

    Raises:
        DmgalError: for names that are unknown or missing, and for shapes that differ.
    """
    renamed = {ours: tensor for key, tensor in state.items() if (ours := _our_name(key, names, ignored)) is not None}
    current = module.state_dict()
    # A batch norm counts its batches only to choose a momentum that is not used here; exports often lack the count.
    missing = [key for key in current if key not in renamed and not key.endswith("num_batches_tracked")]
    unknown = [key for key in renamed if key not in current]
    if missing or unknown:
        raise DmgalError(
            f"The reference weights do not fit {type(module).__name__}.",
            received=f"missing {missing or 'none'}, unknown {unknown or 'none'}",
            expected=f"the parts {sorted(names)}",
            remedy="Pass the part of the checkpoint that belongs to this module, with the prefix of its name removed.",
        )
    differing = [
        f"{key} {tuple(tensor.shape)} for {tuple(current[key].shape)}"
        for key, tensor in renamed.items()
        if tensor.shape != current[key].shape
    ]
    if differing:
        raise DmgalError(
            f"The reference weights have other shapes than {type(module).__name__}.",
            received="; ".join(differing),
            expected="equal shapes",
            remedy="Build the module with the channels, frames and reduction of the checkpoint.",
        )
    module.load_state_dict(renamed, strict=False)


def _our_name(key: str, names: Mapping[str, str], ignored: Collection[str]) -> str | None:
    """Our name of an authors' tensor, None for an ignored one, its own for an unknown one (reported by the caller)."""
    if key in ignored:
        return None
    if key in names:
        return names[key]
    owner, _, leaf = key.rpartition(".")
    return f"{names[owner]}.{leaf}" if owner in names else f"{key} (reference name)"
