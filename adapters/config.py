"""Configs of DMGAL-Adapters: their blocks, widths and parts.

PEFT takes one type per injection. One type therefore holds both adapters: Smga at some blocks, Cmga after others.
``SmgaConfig`` and ``CmgaConfig`` have only one of the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from ..backbones.spec import BackboneSpec
from ..errors import DmgalError
from .block_config import BlockAdapterConfig, options_of
from .cmga import CmgaAdapter
from .motion import BottleneckShape, Directions, Placement, Scales
from .registration import ExternalPeftType
from .smga import SmgaAdapter

DMGAL = ExternalPeftType("DMGAL")


@dataclass
class DmgalConfig(BlockAdapterConfig):
    """Smga-Adapters at all blocks but the last, a Cmga-Adapter after the last (our reconstruction of the paper).

    Args:
        smga_blocks: indices of the blocks with an Smga, negative ones counting from the end. None: all without a Cmga.
        cmga_blocks: indices of the blocks with a Cmga. None: the last block.
        bottleneck: width ``a`` of the adapter. None: a quarter of the backbone's width.
        motion_width: width ``d`` of the motion features. None: ``max(8, width / 32)``. Keep it at or under ``a / 4``.
        scales: ``"single"``, or ``"multi"`` for motion at three resolutions.
        attention: use attention over motion, the paper's core.
        signed: use motion itself as a value, with separate weights for each direction (ours).
        temporal: add a learned code to each frame (ours).
        directions: ``"shared"`` if both directions of motion read the same features (the paper), ``"separate"`` if
            each has its own (ours).
        smga_placement: ``"after"`` or ``"before"`` the block. A Cmga always acts after its block.

    ``BlockAdapterConfig`` documents the other options.
    """

    smga_blocks: list[int] | None = None
    cmga_blocks: list[int] | None = None
    bottleneck: int | None = None
    motion_width: int | None = None
    scales: Scales = "single"
    attention: bool = True
    signed: bool = True
    temporal: bool = True
    directions: Directions = "shared"
    smga_placement: Placement = "after"

    kind: ClassVar[ExternalPeftType] = DMGAL
    title: ClassVar[str] = (
        "DMGAL-Adapter (arXiv 2411.11335). The equations of its Smga- and Cmga-Adapters are **our reconstruction**: "
        "the paper gives none and no code of them is public"
    )
    chosen_by: ClassVar[str] = "smga_blocks and cmga_blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole_number("bottleneck", 1)
        self.check_whole_number("motion_width", 1)
        self.check_choice("scales", ("single", "multi"))
        self.check_choice("directions", ("shared", "separate"))
        self.check_choice("smga_placement", ("after", "before"))
        for name in ("attention", "signed", "temporal"):
            if not isinstance(getattr(self, name), bool):
                raise self.wrong(name, "True or False")

    def complete(self, spec: BackboneSpec) -> None:
        depth = spec.num_blocks
        cmga = [depth - 1] if self.cmga_blocks is None else self.block_indices("cmga_blocks", depth)
        rest = [index for index in range(depth) if index not in cmga]
        smga = rest if self.smga_blocks is None else self.block_indices("smga_blocks", depth)
        both = sorted(set(smga) & set(cmga))
        if both or not smga + cmga:
            raise DmgalError(
                "The lists of Smga and Cmga blocks are not valid.",
                received=f"smga_blocks={self.smga_blocks}, cmga_blocks={self.cmga_blocks}",
                expected="at least one block, and no block in both lists",
                remedy=f"Remove {both} from one list." if both else "Name a block in one of the lists.",
            )
        self.smga_blocks, self.cmga_blocks = smga, cmga
        self.bottleneck = self.bottleneck or max(1, spec.width // 4)
        self.motion_width = self.motion_width or max(8, spec.width // 32)

    def adapter_for(self, block: int, module: nn.Module, spec: BackboneSpec) -> nn.Module | None:
        shape = BottleneckShape(**options_of(self, BottleneckShape.__dataclass_fields__))
        if block in (self.cmga_blocks or ()):
            return CmgaAdapter(shape)
        return SmgaAdapter(shape, self.smga_placement) if block in (self.smga_blocks or ()) else None


@dataclass
class SmgaConfig(DmgalConfig):
    """Config of Smga-Adapters alone. ``smga_blocks=None`` means every block."""

    cmga_blocks: list[int] | None = field(default_factory=list)


@dataclass
class CmgaConfig(DmgalConfig):
    """Config of Cmga-Adapters alone. ``cmga_blocks=None`` means the last block."""

    smga_blocks: list[int] | None = field(default_factory=list)
