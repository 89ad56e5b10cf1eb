"""Mixing a video's frames by weights over time: the TMixer of SA-CT (ACM MM 2023), without its frame halving.

Weights over frames know which frame is which; in DMGAL-FT they are what tells a motion from its time reversal.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...adapters.reference_state import load_reference_state
from ...errors import DmgalError

_REFERENCE_NAMES = {"fc_t1": "frames_in", "fc_t2": "frames_out", "fc_d1": "channels_in", "fc_d2": "channels_out"}


class TemporalMixer(nn.Module):
    """``U = F + W2 relu(W1 F)`` over frames, then ``U + W4 relu(W3 U)`` over channels, at each patch position alone.

    Args:
        num_frames: frames of every video.
        channels: width of the features.
    """

    def __init__(self, num_frames: int, channels: int) -> None:
        super().__init__()
        self.frames_in = nn.Linear(num_frames, num_frames)
        self.frames_out = nn.Linear(num_frames, num_frames)
        self.channels_in = nn.Linear(channels, channels)
        self.channels_out = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """``(V,T,D)`` or ``(V,T,C,H,W)`` to the same shape."""
        self._check(features)
        channels_last = features.movedim(2, -1)  # (V,T,D) or (V,T,H,W,C)
        mixed = channels_last + self._mix_frames(channels_last.flatten(2)).view_as(channels_last)
        mixed = mixed + self.channels_out(self.channels_in(mixed).relu())
        return mixed.movedim(-1, 2)

    def _mix_frames(self, features: Tensor) -> Tensor:
        """``(V,T,N)`` to the same shape."""
        hidden = _over_frames(self.frames_in, features).relu()
        return _over_frames(self.frames_out, hidden)

    def _check(self, features: Tensor) -> None:
        num_frames, channels = self.frames_in.in_features, self.channels_in.in_features
        if features.dim() not in (3, 5) or features.shape[1:3] != (num_frames, channels):
            raise DmgalError(
                "The temporal mixer cannot mix these features.",
                received=f"shape {tuple(features.shape)}",
                expected=f"(videos, {num_frames}, {channels}), with height and width behind for patch maps",
                remedy="Build the mixer with the number of frames and channels that the backbone gives.",
            )

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the names of SA-CT's and DMGAL's released code."""
        load_reference_state(self, state, _REFERENCE_NAMES)


def _over_frames(linear: nn.Linear, features: Tensor) -> Tensor:
    """A linear layer along T of ``(V,T,N)``, without moving the large N away from the end."""
    return torch.einsum("st,vtn->vsn", linear.weight, features) + linear.bias[:, None]
