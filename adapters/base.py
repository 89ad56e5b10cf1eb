"""Base config of the adapters: options, choice of blocks, and the backbone that a saved config belongs to.

A config is written for any backbone. Injection calls ``resolve``, which returns a copy whose open options are filled
in for one backbone. A saved config contains the shape and the fingerprint of its backbone. ``resolve`` refuses another
one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from peft import PeftConfig
from torch import nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .model_card import command_line, write_model_card


@dataclass
class BlockAdapterConfig(PeftConfig):
    """Options that all adapters share. Injection fills in every option that is ``None``.

    Args:
        num_frames: frames ``T`` per video, unless a call passes ``num_frames=...`` or a 5-D input.
        backbone: name of the backbone. This and the next five are facts about it, filled in at injection. Loading a
            saved adapter into a different backbone raises an error.
        width: channels ``C`` of its blocks.
        num_blocks: number of its blocks.
        num_prefix_tokens: tokens of a frame before its patches.
        grid: rows and columns of patches.
        fingerprint: numbers computed from its weights.
        command: command that produced the adapter, for its model card. Saving fills it in.
    """

    num_frames: int = 8
    backbone: str | None = None
    width: int | None = None
    num_blocks: int | None = None
    num_prefix_tokens: int | None = None
    grid: list[int] | None = None
    fingerprint: list[float] | None = None
    command: str | None = None
    modules_to_save: list[str] | None = None
    # PEFT reads these three options of every config. They must stay None.
    target_modules: list[str] | None = field(default=None, metadata={"help": "Not supported."})
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "Not supported."})
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Not supported."})

    kind: ClassVar[str]
    """Name of the method in PEFT's tables."""
    title: ClassVar[str]
    """Name and source of the method, for the model card."""
    chosen_by: ClassVar[str] = "blocks"
    """Names of the options that choose blocks, for error messages."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = ExternalPeftType(self.kind)
        self.check_whole_number("num_frames", 2)
        for name in ("target_modules", "exclude_modules", "target_parameters"):
            if getattr(self, name):
                raise self.wrong(name, f"None: blocks are chosen by {self.chosen_by}")

    def complete(self, spec: BackboneSpec) -> None:
        """Fill in the options that are ``None``, for a backbone of the right shape.

        Raises:
            DmgalError: an option does not fit the backbone, or the method does not support it.
        """
        raise NotImplementedError

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        """Return a new adapter for block number ``block``, ``module``, or None if the config excludes the block."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str, **kwargs: object) -> None:
        """Save config and weights as PEFT does, and write the model card."""
        self.command = self.command or command_line()
        super().save_pretrained(save_directory, **kwargs)
        write_model_card(save_directory, self)

    def check_whole_number(self, name: str, least: int) -> None:
        """Raise DmgalError unless the option is an integer, at least ``least``, or None if that is the default."""
        value = getattr(self, name)
        if value is None and getattr(type(self), name, ...) is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number, at least {least}")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raise DmgalError unless the option is one of ``choices``."""
        if getattr(self, name) not in choices:
            raise self.wrong(name, " or ".join(map(repr, choices)))

    def wrong(self, name: str, expected: str) -> DmgalError:
        """Return the error for an option with an invalid value."""
        return DmgalError(
            f"{type(self).__name__} does not accept this value of {name}.",
            received=f"{name}={getattr(self, name)!r}",
            expected=expected,
            remedy=f"Correct {name}, or omit it to use the default.",
        )

    def block_indices(self, name: str, depth: int) -> list[int]:
        """Return the block indices of an option, sorted and counted from 0. None means all blocks.

        Raises:
            DmgalError: the option is not a list of indices of existing blocks.
        """
        blocks = getattr(self, name)
        if blocks is None:
            return list(range(depth))
        if not isinstance(blocks, (list, tuple)) or not all(type(index) is int for index in blocks):
            raise self.wrong(name, f"a list of whole numbers from {-depth} to {depth - 1}, or None")
        if not blocks and self.chosen_by == "blocks":
            raise self.wrong(name, "at least one block, or None for all")
        if outside := [index for index in blocks if not -depth <= index < depth]:
            raise DmgalError(
                "The config names blocks that do not exist.",
                received=f"{name}={list(blocks)}",
                expected=f"indices from {-depth} to {depth - 1}: the backbone has {depth} blocks",
                remedy=f"Remove {outside}.",
            )
        return sorted({index % depth for index in blocks})

    def unsupported_backbone(self, reason: str, remedy: str) -> DmgalError:
        """Return the error for a backbone that the method does not support."""
        return DmgalError(
            f"{type(self).__name__} is not supported on this backbone.",
            received=reason,
            expected="a backbone that has what the method needs (docs/adapters.md lists the pairs)",
            remedy=remedy,
        )


def options_of(config: BlockAdapterConfig, names: Iterable[str]) -> dict[str, Any]:
    """Return the named options of a completed config, with lists as tuples, as arguments of a module's shape."""
    values = {name: getattr(config, name) for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


FINGERPRINT_TOLERANCE = 0.01
"""Relative tolerance. Casting a backbone to bfloat16 changes its fingerprint by less."""

Config = TypeVar("Config", bound=BlockAdapterConfig)


def resolve(config: Config, spec: BackboneSpec, model: nn.Module) -> Config:
    """Return a completed copy of the config. The config itself stays unchanged and can be used for other backbones.

    Raises:
        DmgalError: the config does not fit the backbone, or belongs to another one.
    """
    fingerprint = spec.fingerprint(model)
    check_backbone(config, spec, fingerprint)
    config = copy.copy(config)
    config.backbone = config.backbone or getattr(model, "dmgal_name", None)
    config.width, config.num_blocks = spec.width, spec.num_blocks
    config.num_prefix_tokens, config.grid = spec.num_prefix_tokens, list(spec.grid)
    config.fingerprint = fingerprint or config.fingerprint
    config.complete(spec)
    return config


def check_backbone(config: BlockAdapterConfig, spec: BackboneSpec, fingerprint: list[float] | None) -> None:
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
    if not differing and config.fingerprint and fingerprint and not _are_close(config.fingerprint, fingerprint):
        received = [f"a backbone with the same shape but other weights (fingerprint {fingerprint})"]
        expected = [f"fingerprint {config.fingerprint}"]
    if received:
        raise DmgalError(
            "This adapter belongs to another backbone.",
            received=", ".join(received),
            expected=", ".join(expected),
            remedy=f"Load it into the backbone it was trained on ({config.backbone or 'its name was not saved'}), or "
            "train one for yours: dmgal train method/smga data/motion_world --backbone.name NAME",
        )


def _are_close(one: list[float], other: list[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=FINGERPRINT_TOLERANCE) for a, b in zip(one, other, strict=True))


class ExternalPeftType(str):
    """String that PEFT accepts as a member of its closed ``PeftType`` enumeration, and that prints like one."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"PeftType.{self.value}"  # PEFT's status shows what follows the dot

    @property
    def value(self) -> str:
        """The name of the method, as of a member of an enumeration."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """The same as ``value``."""
        return self.value
