"""Registration of a method with PEFT, by the tables that PEFT fills for its own methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner

if TYPE_CHECKING:
    from .block_config import BlockAdapterConfig
    from .tuner import BlockTuner


class ExternalPeftType(str):
    """String that PEFT accepts as a member of its closed ``PeftType`` enumeration."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return str(self)


def register(config: type[BlockAdapterConfig], tuner: type[BlockTuner]) -> None:
    """Register a method with PEFT, also one from outside dmgal. A second call, as after a reload, changes nothing.

    Raises:
        RuntimeError: PEFT has another method with this name or parameter prefix.
    """
    peft_type = config.kind
    configs: dict[str, type[PeftConfig]] = mapping.PEFT_TYPE_TO_CONFIG_MAPPING  # type: ignore[assignment]
    tuners: dict[str, type[BaseTuner]] = mapping.PEFT_TYPE_TO_TUNER_MAPPING  # type: ignore[assignment]
    prefixes: dict[str, str] = mapping.PEFT_TYPE_TO_PREFIX_MAPPING  # type: ignore[assignment]
    registered = configs.get(peft_type)
    if registered is not None and _qualified_name(registered) != _qualified_name(config):
        raise RuntimeError(f"PEFT already has a method named {peft_type}: {_qualified_name(registered)}.")
    for other, prefix in prefixes.items():
        if prefix == tuner.prefix and other != peft_type:
            raise RuntimeError(f"The parameter prefix {prefix!r} belongs to PEFT's method {other}.")
    configs[peft_type] = config
    tuners[peft_type] = tuner
    prefixes[peft_type] = tuner.prefix


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
