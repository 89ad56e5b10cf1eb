"""Heads: ``prepare(features)`` processes each video alone, ``compare(support, labels, query)`` returns task logits."""

from torch import nn

from .clip_fsar import ClipFSAR
from .dmgal_ft import DmgalFT
from .frame_distance import BiMHM, FrameAligned, FrameDistanceHead
from .hyrsm import HyRSM
from .late_fusion import LateFusion
from .m2acl import M2ACL
from .molo import MoLo
from .otam import OTAM
from .prototype import Prototype
from .sact import SACT
from .strm import STRM
from .temporal_mixer import TemporalMixer
from .text_fusion import TextFusion
from .trx import TRX

__all__ = [
    "HEADS",
    "M2ACL",
    "OTAM",
    "SACT",
    "STRM",
    "TRX",
    "BiMHM",
    "ClipFSAR",
    "DmgalFT",
    "FrameAligned",
    "FrameDistanceHead",
    "HyRSM",
    "LateFusion",
    "MoLo",
    "Prototype",
    "TemporalMixer",
    "TextFusion",
]

_ALL = (BiMHM, OTAM, FrameAligned, Prototype, HyRSM, MoLo, TRX, STRM, M2ACL, SACT, DmgalFT, LateFusion, ClipFSAR)
HEADS: dict[str, type[nn.Module]] = {head.__name__: head for head in _ALL}
"""All heads by class name. `TextFusion` stands around one of them."""
