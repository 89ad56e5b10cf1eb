"""Bi-MHM, the bidirectional mean Hausdorff metric of HyRSM (CVPR 2022), used by DMGAL; it ignores frame order."""

from __future__ import annotations

from torch import Tensor

from .frame_distance import FrameDistanceHead


def bi_mhm(frame_distances: Tensor) -> Tensor:
    """Return ``sum_t min_s + sum_s min_t``: the distance of each frame to its nearest frame in the other video.

    Args:
        frame_distances: ``(...,T,T')``.

    Returns:
        ``(...)``.
    """
    return frame_distances.amin(dim=-1).sum(dim=-1) + frame_distances.amin(dim=-2).sum(dim=-1)


class BiMHM(FrameDistanceHead):
    """Matching of each frame with its nearest frame of the other video, in both directions.

    ``BiMHM()`` is DMGAL's released form; see `FrameDistanceHead` for the options.
    """

    def video_distance(self, frame_distances: Tensor) -> Tensor:
        return bi_mhm(frame_distances)

    def num_matches(self, query_frames: int, support_frames: int) -> int:
        return query_frames + support_frames
