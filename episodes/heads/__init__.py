"""Heads: ``prepare(features)`` processes each video alone, ``compare(support, labels, query)`` returns task logits."""

from torch import nn

from .clip_fsar import ClipFSAR
from .distance_correlation import DistanceCorrelation
from .dmgal_ft import DmgalFT
from .fine_tuned import FineTuned
from .frame_distance import BiMHM, FrameAligned, FrameDistanceHead
from .hyrsm import HyRSM
from .laplacian_shot import LaplacianShot
from .late_fusion import LateFusion
from .m2acl import M2ACL
from .molo import MoLo
from .otam import OTAM
from .probes import LogisticProbe, RidgeProbe
from .prototype import Prototype
from .sact import SACT
from .strm import STRM
from .team import TEAM
from .temporal_mixer import TemporalMixer
from .text_fusion import TextFusion
from .tim import TIM
from .trx import TRX
from .vectors import VectorHead

__all__ = [
    "HEADS",
    "M2ACL",
    "OTAM",
    "SACT",
    "STRM",
    "TEAM",
    "TIM",
    "TRX",
    "BiMHM",
    "ClipFSAR",
    "DistanceCorrelation",
    "DmgalFT",
    "FineTuned",
    "FrameAligned",
    "FrameDistanceHead",
    "HyRSM",
    "LaplacianShot",
    "LateFusion",
    "LogisticProbe",
    "MoLo",
    "Prototype",
    "RidgeProbe",
    "TemporalMixer",
    "TextFusion",
    "VectorHead",
]

_ALL = (
    *(BiMHM, OTAM, FrameAligned, Prototype, HyRSM, MoLo, TRX, STRM, M2ACL, SACT, DmgalFT, LateFusion, ClipFSAR),
    *(DistanceCorrelation, TEAM, RidgeProbe, LogisticProbe, FineTuned, TIM, LaplacianShot),
)
HEADS: dict[str, type[nn.Module]] = {head.__name__: head for head in _ALL}
"""All heads by class name. `TextFusion` stands around one of them."""
