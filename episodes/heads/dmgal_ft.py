"""DMGAL-FT (arXiv 2411.11335): S-MGA, temporal mixing, C-MGA and Bi-MHM on a backbone's patch maps, all trained.

Only the cross-attention of C-MGA and the matching depend on the task. All earlier steps run once per video.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...adapters.common import load_reference_state
from ...adapters.mga import C_MGA_NAMES, S_MGA_NAMES, CrossMotionGuidedAttention, SelfMotionGuidedAttention
from ...backbones.state import VideoState
from ..episode import EpisodeOutput
from .frame_distance import BiMHM, FrameDistanceHead
from .temporal_mixer import REFERENCE_NAMES as MIXER_NAMES
from .temporal_mixer import TemporalMixer

_PARTS = {
    "s_mga": ("self_attention", S_MGA_NAMES),
    "mixer": ("mixer", MIXER_NAMES),
    "c_mga": ("cross_attention", C_MGA_NAMES),
}


class DmgalFT(nn.Module):
    """Head with logits ``-BiMHM(mean over patches of C-MGA(mix(S-MGA(maps))))``; C-MGA relates query and support.

    It has 11.97 M parameters at 2048 channels, 35.5 M with a ResNet-50.

    A video's state does not depend on other videos if the batch norms are frozen or in evaluation mode. In training
    mode they normalize over the batch of videos, like the released code.

    Args:
        channels: width ``C`` of the patch maps.
        num_frames: frames of every video.
        reduction: the motion of S-MGA and C-MGA has ``C // reduction`` channels.
        matcher: head for the pooled frame features; ``BiMHM()`` (the paper's) if None.
    """

    def __init__(
        self, channels: int, num_frames: int = 8, reduction: int = 8, matcher: FrameDistanceHead | None = None
    ) -> None:
        super().__init__()
        self.self_attention = SelfMotionGuidedAttention(channels, reduction)
        self.mixer = TemporalMixer(num_frames, channels)
        self.cross_attention = CrossMotionGuidedAttention(channels, reduction)
        self.matcher = BiMHM() if matcher is None else matcher

    def prepare(self, features: Tensor) -> VideoState:
        """Return the state of each video for C-MGA, from patch maps ``(V,T,C,H,W)``.

        It has ``residual`` ``(V,T,C)``, ``motion`` ``(V,2,T,P,C')`` and ``values`` ``(V,T,P,C)``.
        """
        mixed = self.mixer(self.self_attention(features))
        return self.cross_attention.pool(self.cross_attention.prepare(mixed))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Return logits ``(Q,n_way)`` from prepared states of ``S`` and ``Q`` videos and support labels ``(S,)``."""
        support_frames, query_frames = self.cross_attention.relate_pooled(support, query)
        return self.matcher.compare(self.matcher.prepare(support_frames), labels, self.matcher.prepare(query_frames))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load released weights with prefixes ``s_mga.``, ``mixer.`` and ``c_mga.`` before the authors' names.

        Checkpoints name these parts differently for each backbone, so rename them first. The released Bi-MHM has no
        weights, so a learned scale keeps its value.
        """
        names = {
            f"{part}.{theirs}": f"{ours}.{our_name}"
            for part, (ours, part_names) in _PARTS.items()
            for theirs, our_name in part_names.items()
        }
        matcher_state = {f"matcher.{name}": tensor for name, tensor in self.matcher.state_dict().items()}
        names["matcher"] = "matcher"
        load_reference_state(self, {**matcher_state, **state}, names, ignored=("s_mga.pe.pe",))
