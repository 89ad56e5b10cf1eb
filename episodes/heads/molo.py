"""MoLo (CVPR 2023): Bi-MHM on frames with global context and on motion that a decoder reconstructs.

X. Wang et al., "MoLo: Motion-augmented Long-short Contrastive Learning for Few-shot Action Recognition", arXiv
2304.00946.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ...adapters.common import SharedDropout, load_reference_state
from ...backbones.state import VideoState
from ...errors import DmgalError
from ..episode import EpisodeOutput, TaskTargets
from .frame_attention import FrameAttention, scaled_position_code
from .frame_distance import (
    at_least_float32,
    bi_mhm,
    center_frames,
    check_maps,
    check_option,
    class_means,
    frame_distances,
)

FRAME_STD = 0.225
"""Standard deviation of MoLo's frame normalization; the mean cancels in a difference of frames."""

_BRANCHES = {"frames": "", "motion": "_motion"}
_BRANCH_NAMES = {
    "class_token{}": "class_token",
    "scale{}": "scale",
    "temporal_atte_before{}.layers.0.0.norm": "attention.norm",
    "temporal_atte_before{}.layers.0.0.fn.to_qkv": "attention.qkv",
    "temporal_atte_before{}.layers.0.0.fn.to_out.0": "attention.out",
    "temporal_atte_before{}.layers.0.1.net.0": "mlp.0",
    "temporal_atte_before{}.layers.0.1.net.3": "mlp.3",
}
_REFERENCE_NAMES = {
    **{
        theirs.format(suffix): f"{branch}.{ours}"
        for branch, suffix in _BRANCHES.items()
        for theirs, ours in _BRANCH_NAMES.items()
    },
    "motion_reduce": "differences.reduce",
    "motion_conv": "differences.align",
    "motion_up": "expand",
    "up1.conv.double_conv.0": "decoder.stages.0.0",
    "up1.conv.double_conv.1": "decoder.stages.0.1",
    "up2.conv.double_conv.0": "decoder.stages.1.0",
    "up2.conv.double_conv.1": "decoder.stages.1.1",
    "up3.conv.double_conv.0": "decoder.stages.2.0",
    "up3.conv.double_conv.1": "decoder.stages.2.1",
    "outc.conv": "decoder.to_rgb",
    "classification_layer": "base_classifier",
}


class LongShortTokens(nn.Module):
    """Learned class token before a video's frames, scaled position code, a pre-norm transformer layer, and ReLU.

    Args:
        width: width ``D`` of the frame features.
        num_heads: number of attention heads; must divide the width.
        mlp_width: width of the hidden layer.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.scale = nn.Parameter(torch.ones(1))
        self.dropout = SharedDropout(0.1, video_dim=0)
        self.attention = FrameAttention(width, num_heads, dropout=0.2)
        dropouts = [SharedDropout(0.05, video_dim=0) for _ in range(2)]
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), dropouts[0], nn.Linear(mlp_width, width), dropouts[1]
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Return the global token followed by the local ones, ``(V,1+T,D)``, of frames ``(V,T,D)``."""
        tokens = torch.cat((self.class_token.expand(len(frames), -1, -1), frames), dim=1)
        attended = self.attention(self.dropout(scaled_position_code(tokens)))
        return (attended + self.mlp(attended)).relu()

    def long_short_logits(self, local: Tensor, other_global: Tensor) -> Tensor:
        """Return ``-scale * sum_t (1 - cos(local_t, global))``, ``(Q,T,D)`` and ``(S,1,D)`` to ``(Q,S)``."""
        return -self.scale * frame_distances(local, other_global).sum(dim=(-2, -1))


class MotionDifferences(nn.Module):
    """Motion ``align(m)[t+1] - m[t]`` of reduced maps ``m`` for the T-1 steps of a video.

    Args:
        channels: width ``C`` of the maps.
        width: width ``C'`` of the motion.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, width, 3, padding=1)
        self.align = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return motion ``(V,T-1,C',H,W)`` of maps ``(V,T,C,H,W)``."""
        reduced = rearrange(self.reduce(rearrange(features, "v t c h w -> v c t h w")), "v c t h w -> v t c h w")
        aligned = self.align(reduced[:, 1:].flatten(0, 1)).view_as(reduced[:, 1:])
        return aligned - reduced[:, :-1]


class MotionDecoder(nn.Module):
    """Decoder from motion to RGB: three stages of upsampling and convolution, to 128, 32 and 16 channels.

    The paper upsamples 7x7 maps by 2, 4 and 4 to 224 pixels. For other sizes, each stage takes the same share of the
    total factor on a logarithmic scale (ours), so that any backbone's maps reach the size of its frames.

    Args:
        width: width ``C'`` of the motion.
    """

    SHARES = (1 / 5, 3 / 5, 1.0)  # cumulative shares of log(2 * 4 * 4)

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 128, 32, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in pairwise(widths)
        )
        self.to_rgb = nn.Conv2d(widths[-1], 3, 1)

    def forward(self, motion: Tensor, size: Sequence[int]) -> Tensor:
        """Decode ``(B,C',H,W)`` to ``(B,3,h,w)`` of the given size."""
        start = motion.shape[-2:]
        for stage, share in zip(self.stages, self.SHARES, strict=True):
            stage_size = [round(small * (large / small) ** share) for small, large in zip(start, size, strict=True)]
            motion = stage(functional.interpolate(motion, size=stage_size, mode="bilinear", align_corners=True))
        return self.to_rgb(motion)


class MoLo(nn.Module):
    """Head with ``logits = -(BiMHM(frames) + motion_weight * BiMHM(motion))`` and the mean of shots as class.

    Given targets, it has these losses:

    - ``long_short``: the sum of four cross-entropies, for frames and for motion. They match a query's local tokens with
      the global tokens of classes, and the reverse.
    - ``base_classes``: base class of each video, if ``num_base_classes`` is set.
    - ``reconstruction``: differences of adjacent RGB frames decoded from the motion, if `prepare` received frames.

    In the paper, the weight of ``base_classes`` is 0.8 on SSv2-Full, 0.15 on SSv2-Small (our default), 0.1 on Kinetics,
    0.4 on HMDB51, and 0.6 on UCF101. That of ``reconstruction`` is 0.1 on SSv2-Full and Kinetics, otherwise 0.05.

    Args:
        channels: width ``C`` of the patch maps, a multiple of ``num_heads``.
        num_base_classes: number of training classes; None for no base classifier.
        num_heads: number of heads of both transformer layers.
        mlp_width: width of their hidden layers; ``C`` if None.
        reduction: the motion has ``C // reduction`` channels.
        motion_weight: weight of the motion's distance.
        center: ``"none"`` (published); ``"video"`` (ours) subtracts a video's mean over frames from local tokens before
            Bi-MHM, which removes static content.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"base_classes": 0.15, "long_short": 0.05, "reconstruction": 0.05}
    pair_scores = "one_shot"

    def __init__(
        self,
        channels: int,
        num_base_classes: int | None = None,
        num_heads: int = 8,
        mlp_width: int | None = None,
        reduction: int = 8,
        motion_weight: float = 0.3,
        center: Literal["none", "video"] = "none",
    ) -> None:
        super().__init__()
        check_option(self, "center", center, ("none", "video"))
        motion_width = channels // reduction
        if motion_width < 1:
            raise DmgalError(
                "MoLo's motion would have no channels.",
                received=f"channels={channels}, reduction={reduction}",
                expected="a reduction up to the number of channels",
                remedy="Lower the reduction.",
            )
        self.motion_weight, self.center = motion_weight, center
        self.frames = LongShortTokens(channels, num_heads, mlp_width or channels)
        self.motion = LongShortTokens(channels, num_heads, mlp_width or channels)
        self.differences = MotionDifferences(channels, motion_width)
        self.expand = nn.Conv2d(motion_width, channels, 1)
        self.decoder = MotionDecoder(motion_width)
        self.base_classifier = None if num_base_classes is None else nn.Linear(channels, num_base_classes)

    @property
    def wants_frames(self) -> bool:
        """True in training, when `prepare` needs a video's frames to reconstruct their differences."""
        return self.training

    def prepare(self, features: Tensor, frames: Tensor | None = None) -> VideoState:
        """Return the state of each video.

        Args:
            features: patch maps ``(V,T,C,H,W)``, at least two frames.
            frames: their frames ``(V,T,3,h,w)`` for the reconstruction, uint8 or normalized.

        Returns:
            ``frames`` ``(V,1+T,C)`` and ``motion`` ``(V,T,C)``, with the global token first. Given frames, also
            ``reconstruction`` ``(V,)``, the mean squared error of each video.
        """
        check_maps(self, features)
        if features.shape[1] < 2:
            raise DmgalError(
                "MoLo requires motion between frames.",
                received="videos of one frame",
                expected="at least two frames",
                remedy="Sample more frames per video.",
            )
        differences = self.differences(features)  # (V,T-1,C',H,W)
        moving = self.expand(differences.flatten(0, 1)).relu().mean(dim=(-2, -1))  # (V*(T-1),C)
        state = VideoState(
            frames=self.frames(features.mean(dim=(-2, -1))),
            motion=self.motion(moving.unflatten(0, differences.shape[:2])),
        )
        if frames is not None:
            state["reconstruction"] = self._reconstruction_error(differences, frames)
        return state

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        """Return float32 logits ``(Q,n_way)`` and, given targets, the losses described in the class docstring."""
        # Distances are small differences of large numbers, so autocast must stay off here.
        with torch.autocast(labels.device.type, enabled=False):
            distances = [
                bi_mhm(frame_distances(self._local(query[name]), self._local(_prototypes(support[name], labels))))
                for name in _BRANCHES
            ]
            logits = -(distances[0] + self.motion_weight * distances[1])
            losses = {} if targets is None else self._losses(support, labels, query, targets)
        return EpisodeOutput(logits, losses)

    def _local(self, tokens: Tensor) -> Tensor:
        """Return the local tokens to match, ``(V,T,C)``, of tokens ``(V,1+T,C)``."""
        local = at_least_float32(tokens)[:, 1:]
        return center_frames(local) if self.center == "video" else local

    def long_short_logits(self, support: VideoState, labels: Tensor, query: VideoState) -> dict[str, Tensor]:
        """Return four logits ``(Q,n_way)``: local query tokens to global class tokens and the reverse, per branch."""
        logits = {}
        for name, suffix in _BRANCHES.items():
            branch = self.get_submodule(name)
            assert isinstance(branch, LongShortTokens)
            query_tokens, class_tokens = at_least_float32(query[name]), _prototypes(support[name], labels)
            logits[f"query_to_class{suffix}"] = branch.long_short_logits(query_tokens[:, 1:], class_tokens[:, :1])
            logits[f"class_to_query{suffix}"] = branch.long_short_logits(class_tokens[:, 1:], query_tokens[:, :1]).T
        return logits

    def base_class_logits(self, state: VideoState) -> Tensor:
        """Return logits ``(V,num_base_classes)`` from the means of frame and motion tokens, including global ones.

        This requires a base classifier.
        """
        assert self.base_classifier is not None
        return self.base_classifier(state["frames"].mean(dim=1) + state["motion"].mean(dim=1))

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of the released code; ignore its base classifier if there is none here."""
        ignored = ["pe.pe"]
        if self.base_classifier is None:
            ignored += ["classification_layer.weight", "classification_layer.bias"]
        load_reference_state(self, state, _REFERENCE_NAMES, ignored)

    def _reconstruction_error(self, differences: Tensor, frames: Tensor) -> Tensor:
        """Return each video's mean squared error ``(V,)``, float32, from ``(V,T-1,C',H,W)`` and ``(V,T,3,h,w)``."""
        steps = frame_differences(frames)  # (V,T-1,3,h,w)
        decoded = self.decoder(differences.flatten(0, 1), steps.shape[-2:]).view_as(steps)
        return (at_least_float32(decoded) - steps).square().mean(dim=(1, 2, 3, 4))

    def _losses(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets
    ) -> dict[str, Tensor]:
        long_short = [
            functional.cross_entropy(logits, targets.query_labels)
            for logits in self.long_short_logits(support, labels, query).values()
        ]
        losses = {"long_short": torch.stack(long_short).sum()}
        if self.base_classifier and targets.support_classes is not None and targets.query_classes is not None:
            logits = torch.cat([self.base_class_logits(state) for state in (support, query)])
            classes = torch.cat((targets.support_classes, targets.query_classes))
            losses["base_classes"] = functional.cross_entropy(at_least_float32(logits), classes)
        if "reconstruction" in support and "reconstruction" in query:
            losses["reconstruction"] = torch.cat((support["reconstruction"], query["reconstruction"])).mean()
        return losses


def frame_differences(frames: Tensor) -> Tensor:
    """Return the difference of each frame but the first to the previous one, ``(V,T,3,h,w)`` to ``(V,T-1,3,h,w)``.

    Frames of uint8 are normalized here, others have to be normalized. The result is float32 (float64 for float64).
    """
    values = frames / (255 * FRAME_STD) if frames.dtype == torch.uint8 else at_least_float32(frames)
    return values[:, 1:] - values[:, :-1]


def _prototypes(tokens: Tensor, labels: Tensor) -> Tensor:
    """Average tokens ``(S,N,D)`` over the shots of each class by labels ``(S,)``, to ``(n_way,N,D)``."""
    return class_means(at_least_float32(tokens), labels)
