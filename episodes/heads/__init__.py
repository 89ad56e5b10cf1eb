"""Heads: ``prepare(features)`` knows one video, ``compare(support, labels, query)`` gives a task's logits."""

from .bi_mhm import BiMHM
from .dmgal_ft import DmgalFT
from .frame_aligned import FrameAligned
from .frame_distance import FrameDistanceHead
from .hyrsm import HyRSM
from .m2acl import M2ACL
from .molo import MoLo
from .otam import OTAM
from .prototype import Prototype
from .sact import SACT
from .strm import STRM
from .temporal_mixer import TemporalMixer
from .trx import TRX

__all__ = [
    "M2ACL",
    "OTAM",
    "SACT",
    "STRM",
    "TRX",
    "BiMHM",
    "DmgalFT",
    "FrameAligned",
    "FrameDistanceHead",
    "HyRSM",
    "MoLo",
    "Prototype",
    "TemporalMixer",
]
