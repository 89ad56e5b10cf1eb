"""What a user chooses about DMGAL-Adapters: which blocks, how wide, and which of their parts.

One PEFT type holds both adapters, because PEFT takes one type per injection: Smga behind some blocks, Cmga behind
others. ``SmgaConfig`` and ``CmgaConfig`` are the same with only one kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from ..errors import DmgalError
from .motion import Scales


@dataclass
class DmgalConfig(PeftConfig):
    """Smga-Adapters behind all blocks but the last, a Cmga-Adapter behind the last (our reconstruction of the paper's).

    Everything left at ``None`` is filled in from the backbone when the adapter is injected, and saved with it.

    Args:
        smga_blocks: indices of the blocks that get an Smga (negative ones count from the end); None: all but the last.
        cmga_blocks: indices of the blocks that get a Cmga; None: the last.
        bottleneck: width ``a`` of the adapter; None: a quarter of the backbone's.
        motion_width: width ``d`` of the motion features; None: ``max(8, width / 32)``. Keep it at or under ``a / 4``.
        num_frames: frames ``T`` of a video; the temporal code has one entry for each.
        scales: ``"single"``, or ``"multi"`` for motion at three resolutions.
        attention: attention over motion, the paper's core.
        signed: motion itself as a value, each direction with its own weights (ours).
        temporal: a learned code for each frame (ours).
        backbone, width, num_blocks, num_prefix_tokens, grid, fingerprint: of the backbone, filled in; a saved adapter
            is refused by a backbone that differs.
    """

    smga_blocks: list[int] | None = None
    cmga_blocks: list[int] | None = None
    bottleneck: int | None = None
    motion_width: int | None = None
    num_frames: int = 8
    scales: Scales = "single"
    attention: bool = True
    signed: bool = True
    temporal: bool = True
    backbone: str | None = None
    width: int | None = None
    num_blocks: int | None = None
    num_prefix_tokens: int | None = None
    grid: list[int] | None = None
    fingerprint: list[float] | None = None
    modules_to_save: list[str] | None = None
    target_modules: list[str] | None = field(default=None, metadata={"help": "Read by PEFT; blocks are chosen above."})
    exclude_modules: list[str] | None = field(default=None, metadata={"help": "Read by PEFT; unused."})
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Read by PEFT; unused."})

    def __post_init__(self) -> None:
        super().__post_init__()
        from .registration import DMGAL

        self.peft_type = DMGAL
        self._check_range("num_frames", self.num_frames, 2)
        for name in ("bottleneck", "motion_width"):
            if getattr(self, name) is not None:
                self._check_range(name, getattr(self, name), 1)
        if self.scales not in ("single", "multi"):
            raise _wrong("scales", repr(self.scales), "'single' or 'multi'")
        for name in ("target_modules", "exclude_modules", "target_parameters"):
            if getattr(self, name):
                raise _wrong(name, repr(getattr(self, name)), "None: blocks are chosen by smga_blocks and cmga_blocks")

    @staticmethod
    def _check_range(name: str, value: int, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _wrong(name, repr(value), f"a whole number, at least {least}")


@dataclass
class SmgaConfig(DmgalConfig):
    """Smga-Adapters only; None: behind every block."""

    cmga_blocks: list[int] | None = field(default_factory=list)


@dataclass
class CmgaConfig(DmgalConfig):
    """A Cmga-Adapter only; None: behind the last block."""

    smga_blocks: list[int] | None = field(default_factory=list)


def _wrong(name: str, received: str, expected: str) -> DmgalError:
    return DmgalError(
        f"DmgalConfig cannot take this {name}.", received=received, expected=expected, remedy=f"give another {name}"
    )
