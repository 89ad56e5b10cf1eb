"""Heads: ``prepare(features)`` knows one video, ``compare(support, labels, query)`` gives a task's logits."""

from .bi_mhm import BiMHM
from .dmgal_ft import DmgalFT
from .frame_aligned import FrameAligned
from .frame_distance import FrameDistanceHead
from .otam import OTAM
from .temporal_mixer import TemporalMixer

__all__ = ["OTAM", "BiMHM", "DmgalFT", "FrameAligned", "FrameDistanceHead", "TemporalMixer"]
