"""Loading of weights under the names of the authors' released code into modules with other names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ..errors import DmgalError


def load_reference_state(
    module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], ignored: Collection[str] = ()
) -> None:
    """Load ``state`` into all of ``module``. An error leaves the module unchanged.

    Args:
        module: the module to fill.
        state: tensors under the authors' names.
        names: our names of parameters, or of submodules with parameters, by the authors' names.
        ignored: authors' names of tensors that are not learned, or that their forward never uses.

    Raises:
        DmgalError: names are unknown or missing, or shapes differ.
    """
    renamed = {}
    for key, tensor in state.items():
        our_name = _our_name(key, names, ignored)
        if our_name is not None:
            renamed[our_name] = tensor
    current = module.state_dict()
    # Exports often lack the batch counts of batch norms, which matter only to a momentum that is not used here.
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
    """Return our name of an authors' tensor, None for an ignored one.

    An unknown tensor keeps its name with a mark. The caller reports it.
    """
    if key in ignored:
        return None
    if key in names:
        return names[key]
    owner, _, leaf = key.rpartition(".")
    return f"{names[owner]}.{leaf}" if owner in names else f"{key} (reference name)"
