"""Frame-aligned matching: frame t is compared with frame t, so that order counts and time may not be warped."""

from __future__ import annotations

from torch import Tensor

from ...errors import DmgalError
from .frame_distance import FrameDistanceHead


def frame_aligned(frame_distances: Tensor) -> Tensor:
    """The sum of the distances of frames with the same index; ``(...,T,T)`` to ``(...)``."""
    query_frames, support_frames = frame_distances.shape[-2:]
    if query_frames != support_frames:
        raise DmgalError(
            "Frame-aligned matching compares frames of the same index.",
            received=f"{query_frames} query frames, {support_frames} support frames",
            expected="as many frames in support videos as in query videos",
            remedy="Sample both with the same number of frames, or use BiMHM or OTAM.",
        )
    return frame_distances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


class FrameAligned(FrameDistanceHead):
    """Cosine distance of frames with the same index; see `FrameDistanceHead` for the options."""

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        return frame_aligned(frame_distances)

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        return query_frames
