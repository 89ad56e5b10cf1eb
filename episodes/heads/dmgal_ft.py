"""DMGAL-FT (arXiv 2411.11335): S-MGA, temporal mixing, C-MGA and Bi-MHM on a backbone's patch maps, all trained.

Only the cross attention of C-MGA and the matching belong to a task; all before is prepared once per video.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...adapters.mga import C_MGA_NAMES, S_MGA_NAMES, CrossMotionGuidedAttention, SelfMotionGuidedAttention
from ...adapters.reference_state import load_reference_state
from ...backbones.video_state import VideoState
from ..episode import EpisodeOutput
from .bi_mhm import BiMHM
from .frame_distance import FrameDistanceHead
from .temporal_mixer import REFERENCE_NAMES as MIXER_NAMES
from .temporal_mixer import TemporalMixer

_PARTS = {
    "s_mga": ("self_attention", S_MGA_NAMES),
    "mixer": ("mixer", MIXER_NAMES),
    "c_mga": ("cross_attention", C_MGA_NAMES),
}


class DmgalFT(nn.Module):
    """``-BiMHM(mean over patches of C-MGA(mix(S-MGA(maps))))``, the query's maps related to the support's by C-MGA.

    11.97 M parameters at 2048 channels; with a ResNet-50 35.5 M.

    A video's state does not depend on other videos where the batch norms are in evaluation mode or frozen; in training
    mode they normalize over the batch of videos, as the released code does.

    Args:
        channels: width ``C`` of the patch maps.
        num_frames: frames of every video.
        reduction: the motion of S-MGA and C-MGA has ``C // reduction`` channels.
        matcher: compares the pooled frame features; ``BiMHM()`` (the paper's) if None.
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
        """All that is a function of one video.

        Args:
            features: patch maps ``(V,T,C,H,W)``.

        Returns:
            ``residual`` ``(V,T,C)``, ``motion`` ``(V,2,T,P,C')`` and ``values`` ``(V,T,P,C)`` of C-MGA.
        """
        mixed = self.mixer(self.self_attention(features))
        return self.cross_attention.pool(self.cross_attention.prepare(mixed))

    def compare(self, support: VideoState, labels: Tensor, query: VideoState) -> EpisodeOutput:
        """Logits ``(Q,n_way)`` from `prepare` of ``S`` and ``Q`` videos and the support's labels ``(S,)``."""
        support_frames, query_frames = self.cross_attention.relate_pooled(support, query)
        return self.matcher.compare(self.matcher.prepare(support_frames), labels, self.matcher.prepare(query_frames))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load released weights: ``s_mga.``, ``mixer.`` and ``c_mga.``, and behind these prefixes the authors' names.

        How a checkpoint calls the parts themselves depends on its backbone, so rename them. Bi-MHM has no weights in
        the released form; a learned scale keeps its own.
        """
        names = {
            f"{part}.{theirs}": f"{ours}.{our_name}"
            for part, (ours, part_names) in _PARTS.items()
            for theirs, our_name in part_names.items()
        }
        kept = {f"matcher.{name}": tensor for name, tensor in self.matcher.state_dict().items()}
        load_reference_state(self, {**kept, **state}, {**names, "matcher": "matcher"}, ignored=("s_mga.pe.pe",))
