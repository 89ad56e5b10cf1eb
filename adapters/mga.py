"""Motion-guided attention at the backbone's full width: S-MGA within a video, C-MGA from support videos to a query.

Both are DMGAL's (arXiv 2411.11335), reproduced from the released code. Attention says where motion is alike; what it
carries are appearance values. Both directions of motion average their attention maps before one product with the
values, which equals the authors' two products and is faster.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backbones.video_state import VideoState
from ..errors import DmgalError
from .motion_features import REFERENCE_NAMES, MotionFeatures, check_patch_maps, initialize_convolutions
from .position_code import sinusoidal_position_code
from .reference_state import load_reference_state
from .shared_dropout import SharedDropout

_MOTION_NAMES = {theirs: f"motion.{ours}" for theirs, ours in REFERENCE_NAMES.items()}
S_MGA_NAMES = {**_MOTION_NAMES, "conv": "values", "gamma": "gamma"}
C_MGA_NAMES = {
    **_MOTION_NAMES,
    "conv": "values",
    "norm_qk": "token_norm",
    "gamma1": "gamma_values",
    "gamma2": "gamma_cross",
}
"""The released code's names of the parts of both modules."""


class SelfMotionGuidedAttention(nn.Module):
    """S-MGA: within each frame, patches that move alike share their appearance.

    ``out = x + gamma * (A_f + A_b) / 2 @ dw3x3(x)`` with ``A = softmax(m m^T / sqrt(C'))`` over the patches of a frame,
    ``m`` the motion tokens plus a sinusoidal position code, and gamma starting at 0.

    ``m m^T`` does not see the sign of motion: a clip and its time reversal get the same frame features in reverse
    order.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: the motion has ``C' = C // reduction`` channels.
        dropout: on the motion tokens, in training; all videos of a batch share its mask (ours).
    """

    def __init__(self, channels: int, reduction: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.values = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.dropout = SharedDropout(dropout)
        self.gamma = nn.Parameter(torch.zeros(1))
        initialize_convolutions(self)

    def forward(self, features: Tensor) -> Tensor:
        """``(V,T,C,H,W)`` to the same shape."""
        tokens = self.motion(features).flatten(4).transpose(3, 4)  # (2,V,T,P,C')
        code = sinusoidal_position_code(tokens.shape[3], tokens.shape[4], like=tokens)
        tokens = self.dropout(tokens + code).flatten(1, 2)  # (2,V*T,P,C')
        attention = _average_attention(tokens, tokens)  # (V*T,P,P)
        values = self.values(features.flatten(0, 1)).flatten(2)  # (V*T,C,P)
        attended = values @ attention.transpose(1, 2)
        return features + self.gamma * attended.view_as(features)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of DMGAL's released code; its stored position code is computed here instead."""
        load_reference_state(self, state, S_MGA_NAMES, ignored=("pe.pe",))


class CrossMotionGuidedAttention(nn.Module):
    """C-MGA: each patch of a query frame gathers appearance from the support patches that move as it does.

    For a query video and frame t: ``query' = q + gamma_values * dw(q) + gamma_cross * cross``, where ``cross`` attends
    from its motion tokens of frame t to those of frame t of ALL support videos of the task, with one softmax over all
    of them. A support video gets ``s + gamma_values * dw(s)``. Both gammas start at 0. Motion tokens are layer-normed.

    Everything but ``cross`` belongs to one video: `prepare` computes it once, `relate` adds what belongs to the task.

    Args:
        channels: width ``C`` of the patch maps.
        reduction: the motion has ``C' = C // reduction`` channels.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.motion = MotionFeatures(channels, reduction)
        self.token_norm = nn.LayerNorm(self.motion.width)
        self.values = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.gamma_values = nn.Parameter(torch.zeros(1))
        self.gamma_cross = nn.Parameter(torch.zeros(1))
        initialize_convolutions(self)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """``(S,T,C,H,W)`` and ``(Q,T,C,H,W)`` to the same shapes."""
        return self.relate(self.prepare(support), self.prepare(query))

    def prepare(self, features: Tensor) -> VideoState:
        """All that is a function of one video.

        Args:
            features: ``(V,T,C,H,W)``.

        Returns:
            ``residual`` ``(V,T,C,H,W)``, the video before any cross attention; ``motion`` ``(V,2,T,P,C')``, its motion
            tokens forward and backward; ``values`` ``(V,T,P,C)``, what it gives when it is a support video.
        """
        videos, frames = check_patch_maps(features)[:2]
        tokens = self.motion(features).flatten(4).transpose(3, 4)  # (2,V,T,P,C')
        values = self.values(features.flatten(0, 1)).unflatten(0, (videos, frames))  # (V,T,C,H,W)
        return VideoState(
            residual=features + self.gamma_values * values,
            motion=self.token_norm(tokens).transpose(0, 1),
            values=values.flatten(3).transpose(2, 3),
        )

    def relate(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """The features of a task's videos, from two states of `prepare`; ``(S,T,C,H,W)`` and ``(Q,T,C,H,W)``."""
        residual = query["residual"]
        # One frame at a time: the maps of all frames together would take T times the memory, and are not faster.
        cross = [
            self._attention(support, query, frame) @ _all_patches(support["values"], frame)
            for frame in range(_common_frames(support, query))
        ]  # T times (Q*P,C)
        patches = torch.stack(cross).unflatten(1, (residual.shape[0], -1))  # (T,Q,P,C)
        return support["residual"], residual + self.gamma_cross * patches.permute(1, 0, 3, 2).reshape(residual.shape)

    @staticmethod
    def pool(state: VideoState) -> VideoState:
        """A state for `relate_pooled`: the residual averaged over patches, ``(V,T,C)``; a fraction of the memory."""
        return VideoState({**state, "residual": state["residual"].mean(dim=(-2, -1))})

    def relate_pooled(self, support: VideoState, query: VideoState) -> tuple[Tensor, Tensor]:
        """`relate` followed by the mean over patches, for states of `pool`; ``(S,T,C)`` and ``(Q,T,C)``.

        The mean of ``A @ values`` over patches is the mean of A's rows times the values, so that the product with the
        values is done once per query frame instead of once per query patch.
        """
        residual = query["residual"]
        cross = [
            self._attention(support, query, frame).unflatten(0, (residual.shape[0], -1)).mean(dim=1)
            @ _all_patches(support["values"], frame)
            for frame in range(_common_frames(support, query))
        ]  # T times (Q,C)
        return support["residual"], residual + self.gamma_cross * torch.stack(cross, dim=1)

    @staticmethod
    def _attention(support: VideoState, query: VideoState, frame: int) -> Tensor:
        """How much each query patch of one frame takes from each support patch, ``(Q*P,S*P)``."""
        query_tokens, support_tokens = (
            state["motion"][:, :, frame].transpose(0, 1).flatten(1, 2) for state in (query, support)
        )  # (2,Q*P,C') and (2,S*P,C')
        return _average_attention(query_tokens, support_tokens)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of DMGAL's released code."""
        load_reference_state(self, state, C_MGA_NAMES)


def _average_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """The mean of both directions' attention maps; ``(2,...,N,C')`` and ``(2,...,M,C')`` to ``(...,N,M)``."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    forward, backward = scores.softmax(dim=-1)
    return (forward + backward) * 0.5


def _all_patches(values: Tensor, frame: int) -> Tensor:
    """The patches of one frame of all videos; ``(S,T,P,C)`` to ``(S*P,C)``."""
    return values[:, frame].flatten(0, 1)


def _common_frames(support: VideoState, query: VideoState) -> int:
    frames = query["motion"].shape[2]
    if support["motion"].shape[2] != frames:
        raise DmgalError(
            "C-MGA compares frames of the same index.",
            received=f"{support['motion'].shape[2]} support frames, {frames} query frames",
            expected="as many frames in support videos as in query videos",
            remedy="Sample both with the same number of frames.",
        )
    return frames
