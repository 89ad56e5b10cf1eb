"""Frame-aligned matching: compares frame t with frame t, so order matters and time cannot be warped."""

from __future__ import annotations

from torch import Tensor

from ...errors import DmgalError
from .frame_distance import FrameDistanceHead


def frame_aligned(frame_distances: Tensor) -> Tensor:
    """Sum the distances of frames with the same index, ``(...,T,T)`` to ``(...)``."""
    query_frames, support_frames = frame_distances.shape[-2:]
    if query_frames != support_frames:
        raise DmgalError(
            "Frame-aligned matching compares frames of the same index.",
            received=f"{query_frames} query frames, {support_frames} support frames",
            expected="the same number of frames in support and query videos",
            remedy="Sample both with the same number of frames, or use BiMHM or OTAM.",
        )
    return frame_distances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


class FrameAligned(FrameDistanceHead):
    """Cosine distance of frames with the same index; see `FrameDistanceHead` for the options."""

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        return frame_aligned(frame_distances)

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        return query_frames
