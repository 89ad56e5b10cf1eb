"""What every adapter of ours tells PEFT and saves: where it goes, and which backbone it belongs to.

A new adapter is one file with a module, a subclass of ``BlockAdapterConfig`` and a layer that says where it acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from torch import nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .model_card import command_line, write_model_card
from .registration import ExternalPeftType


@dataclass
class BlockAdapterConfig(PeftConfig):
    """The part that all adapters share; everything left at ``None`` is filled in when the adapter is injected.

    Args:
        num_frames: frames ``T`` of a video, where a call does not tell (by ``num_frames=...`` or a 5-D input).
        backbone, width, num_blocks, num_prefix_tokens, grid, fingerprint: of the backbone, filled in; a saved adapter
            is refused by a backbone that differs.
        command: the command that made the adapter, for its model card; filled in when it is saved.
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
    target_modules: list[str] | None = field(default=None, metadata={"help": "Read by PEFT; unused."})
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "Read by PEFT; unused."})
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Read by PEFT; unused."})

    kind: ClassVar[ExternalPeftType]
    title: ClassVar[str]
    """Name and source, for the model card."""
    chosen_by: ClassVar[str] = "blocks"
    """The options that choose blocks, for messages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.kind
        self.check_whole_number("num_frames", 2)
        for name in ("target_modules", "exclude_modules", "target_parameters"):
            if getattr(self, name):
                raise self.wrong(name, f"None: blocks are chosen by {self.chosen_by}")

    def complete(self, spec: BackboneSpec) -> None:
        """Fills in what was left open, for a backbone that is known to fit.

        Raises:
            DmgalError: an option does not fit the backbone, or the method makes no sense on it.
        """
        raise NotImplementedError

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        """A new adapter for a block, ``module``, of a completed config; None where the block gets none."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's, and the model card beside it."""
        self.command = self.command or command_line()
        super().save_pretrained(save_directory, **kwargs)
        write_model_card(save_directory, self)

    def check_whole_number(self, name: str, least: int, most: int | None = None) -> None:
        """Of an option that is None or in a range."""
        value = getattr(self, name)
        if value is None and name != "num_frames":
            return
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or value < least
            or (most is not None and value > most)
        ):
            limits = f"at least {least}" if most is None else f"from {least} to {most}"
            raise self.wrong(name, f"a whole number, {limits}")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Of an option that takes one of a few words."""
        if getattr(self, name) not in choices:
            raise self.wrong(name, " or ".join(map(repr, choices)))

    def wrong(self, name: str, expected: str) -> DmgalError:
        return DmgalError(
            f"{type(self).__name__} cannot take this {name}.",
            received=f"{name}={getattr(self, name)!r}",
            expected=expected,
            remedy=f"give another {name}",
        )

    def block_indices(self, name: str, depth: int) -> list[int]:
        """The blocks that an option names, counted from 0; all of them where it is None.

        Raises:
            DmgalError: it is not a list of indices of blocks that exist.
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
                "An adapter was asked for at a block that does not exist.",
                received=f"{name}={list(blocks)}",
                expected=f"indices from {-depth} to {depth - 1}: the backbone has {depth} blocks",
                remedy=f"take {outside} out",
            )
        return sorted({index % depth for index in blocks})

    def refuse_backbone(self, reason: str, remedy: str) -> DmgalError:
        """For pairs of adapter and backbone that make no sense."""
        return DmgalError(
            f"{type(self).__name__} makes no sense on this backbone.",
            received=reason,
            expected="a backbone that has what the method needs (docs/adapters.md lists the pairs)",
            remedy=remedy,
        )


def options_of(config: BlockAdapterConfig, names: Iterable[str]) -> dict[str, Any]:
    """Options of a completed config by their names, lists as tuples: what a module's shape is made of."""
    values = {name: getattr(config, name) for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
