"""Mixing of a video's frames by weights over time: the two halves of TMixer from SA-CT (ACM MM 2023).

Weights over frames depend on the frame index. DMGAL-FT uses the first half only; there they separate a motion from its
time reversal.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...adapters.common import load_reference_state
from ...errors import DmgalError

REFERENCE_NAMES = {"fc_t1": "frames_in", "fc_t2": "frames_out", "fc_d1": "channels_in", "fc_d2": "channels_out"}
"""Our names of the parts of `TemporalMixer`, by their names in the released code."""


class TemporalMixer(nn.Module):
    """First half of TMixer, as released by SA-CT and DMGAL.

    It computes ``U = F + W2 relu(W1 F)`` over frames, then ``U + W4 relu(W3 U)`` over channels, at each patch position
    separately.

    Args:
        num_frames: number of frames per video.
        channels: width of the features.
    """

    def __init__(self, num_frames: int, channels: int) -> None:
        super().__init__()
        self.frames_in = nn.Linear(num_frames, num_frames)
        self.frames_out = nn.Linear(num_frames, num_frames)
        self.channels_in = nn.Linear(channels, channels)
        self.channels_out = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Mix ``(V,T,D)`` or ``(V,T,C,H,W)``; return the same shape."""
        _check_features(features, self.frames_in.in_features, self.channels_in.in_features)
        channels_last = features.movedim(2, -1)  # (V,T,D) or (V,T,H,W,C)
        mixed = channels_last + _mix_frames(channels_last, self.frames_in, self.frames_out)
        return _add_mixed_channels(mixed, self.channels_in, self.channels_out).movedim(-1, 2)

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of SA-CT's and DMGAL's released code."""
        load_reference_state(self, state, REFERENCE_NAMES)


class TMixer(nn.Module):
    """Full TMixer of SA-CT: `TemporalMixer`, then a second half that halves the number of frames.

    The second half computes ``Y = W6 relu(W5 V)`` over frames, T to T/2, without a residual. Then it computes
    ``Z = Y + W8 relu(W7 Y)`` over channels. The paper prints U, which has T frames, but must mean Y. It does not state
    which layer halves. We use the second, so the hidden layer has T frames. The second half was not released, so no
    reference outputs verify it.

    Args:
        num_frames: number of frames per video, at least 2.
        channels: width of the features.
    """

    def __init__(self, num_frames: int, channels: int) -> None:
        super().__init__()
        if num_frames < 2:
            raise DmgalError(
                "The number of frames cannot be halved.",
                received=f"num_frames={num_frames}",
                expected="at least 2 frames",
                remedy="Sample more frames per video.",
            )
        self.mixing = TemporalMixer(num_frames, channels)
        self.halving_in = nn.Linear(num_frames, num_frames)
        self.halving_out = nn.Linear(num_frames, num_frames // 2)
        self.channels_in = nn.Linear(channels, channels)
        self.channels_out = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(V,T/2,D)`` for ``(V,T,D)``, or ``(V,T/2,C,H,W)`` for ``(V,T,C,H,W)``; T/2 is rounded down."""
        mixed = self.mixing(features).movedim(2, -1)  # (V,T,D) or (V,T,H,W,C)
        halved = _mix_frames(mixed, self.halving_in, self.halving_out)
        return _add_mixed_channels(halved, self.channels_in, self.channels_out).movedim(-1, 2)


def _mix_frames(features: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Apply ``second(relu(first(.)))`` along the frames, ``(V,T,...)`` to ``(V,T',...)``."""
    hidden = _linear_over_frames(first, features.flatten(2)).relu()
    return _linear_over_frames(second, hidden).unflatten(2, features.shape[2:])


def _add_mixed_channels(channels_last: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """Return ``x + second(relu(first(x)))`` along the last dimension."""
    return channels_last + second(first(channels_last).relu())


def _linear_over_frames(linear: nn.Linear, features: Tensor) -> Tensor:
    """Apply a linear layer along T, ``(V,T,N)`` to ``(V,T',N)``; the large N stays the last dimension."""
    return torch.einsum("st,vtn->vsn", linear.weight, features) + linear.bias[:, None]


def _check_features(features: Tensor, num_frames: int, channels: int) -> None:
    if features.dim() not in (3, 5) or features.shape[1:3] != (num_frames, channels):
        raise DmgalError(
            "The temporal mixer does not support features of this shape.",
            received=f"shape {tuple(features.shape)}",
            expected=f"(videos, {num_frames}, {channels}), followed by height and width for patch maps",
            remedy="Build the mixer with the backbone's number of frames and channels.",
        )
