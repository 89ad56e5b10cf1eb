"""Tells stock PEFT of a method from outside its tree, by filling the tables that PEFT's own methods fill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner

if TYPE_CHECKING:
    from .block_config import BlockAdapterConfig
    from .tuner import BlockTuner


class ExternalPeftType(str):
    """A string that passes where PEFT expects a member of its closed ``PeftType`` enumeration."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return str(self)


def register(config: type[BlockAdapterConfig], tuner: type[BlockTuner]) -> None:
    """Makes PEFT know a method, yours too; doing it again (a reload) changes nothing.

    Raises:
        RuntimeError: PEFT has another method of this name or with this parameter prefix.
    """
    peft_type = config.kind
    configs: dict[str, type[PeftConfig]] = mapping.PEFT_TYPE_TO_CONFIG_MAPPING  # type: ignore[assignment]
    tuners: dict[str, type[BaseTuner]] = mapping.PEFT_TYPE_TO_TUNER_MAPPING  # type: ignore[assignment]
    prefixes: dict[str, str] = mapping.PEFT_TYPE_TO_PREFIX_MAPPING  # type: ignore[assignment]
    known = configs.get(peft_type)
    if known is not None and _qualified(known) != _qualified(config):
        raise RuntimeError(f"PEFT already has a method named {peft_type}: {_qualified(known)}")
    for other, prefix in prefixes.items():
        if prefix == tuner.prefix and other != peft_type:
            raise RuntimeError(f"The parameter prefix {prefix!r} belongs to PEFT's method {other}")
    configs[peft_type] = config
    tuners[peft_type] = tuner
    prefixes[peft_type] = tuner.prefix


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
