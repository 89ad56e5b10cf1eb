"""Tells stock PEFT of a method from outside its tree, by filling the tables that PEFT's own methods fill."""

from __future__ import annotations

from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner


class ExternalPeftType(str):
    """A string that passes where PEFT expects a member of its closed ``PeftType`` enumeration."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return str(self)


DMGAL = ExternalPeftType("DMGAL")


def register(peft_type: ExternalPeftType, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Makes PEFT know a method; doing it again (a reload) changes nothing.

    Raises:
        RuntimeError: PEFT has another method of this name or with this parameter prefix.
    """
    known = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is not None and _qualified(known) != _qualified(config):
        raise RuntimeError(f"PEFT already has a method named {peft_type}: {_qualified(known)}")
    for other, prefix in mapping.PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if prefix == tuner.prefix and other != peft_type:
            raise RuntimeError(f"The parameter prefix {prefix!r} belongs to PEFT's method {other}")
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = tuner.prefix


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
