"""Choice of ``T`` frames of a video: one from each of ``T`` equal segments.

Segment ``i`` of ``n`` frames is ``[i*n/T, (i+1)*n/T)``. In units of 1/T of a frame it consists of the ``n`` integers
from ``i*n``, so all arithmetic is exact. A video shorter than ``T`` repeats frames by the same rule.
"""

from __future__ import annotations

import torch

from ..errors import DmgalError


def uniform_frames(num_frames: int, num_wanted: int) -> list[int]:
    """Return the middle frame of each segment: the fixed input of validation and test.

    Args:
        num_frames: frames in the video, at least 1.
        num_wanted: ``T``, number of frames to choose, at least 1.

    Returns:
        ``T`` non-decreasing indices. If ``num_frames == T``, these are all frames in order.

    Raises:
        DmgalError: a count below 1.
    """
    _check_counts(num_frames, num_wanted)
    return [(2 * segment + 1) * num_frames // (2 * num_wanted) for segment in range(num_wanted)]


def random_frames(num_frames: int, num_wanted: int, generator: torch.Generator) -> list[int]:
    """Return a random frame of each segment, drawn uniformly: the varied input of training.

    Arguments, result and errors are those of `uniform_frames`. ``generator`` is the only source of randomness.
    """
    _check_counts(num_frames, num_wanted)
    offsets = torch.randint(num_frames, (num_wanted,), generator=generator).tolist()
    return [(segment * num_frames + offset) // num_wanted for segment, offset in enumerate(offsets)]


def _check_counts(num_frames: int, num_wanted: int) -> None:
    if num_frames < 1 or num_wanted < 1:
        raise DmgalError(
            "Cannot choose frames of a video.",
            received=f"{num_wanted} frames wanted of a video of {num_frames}",
            expected="at least one frame wanted, and at least one in the video",
            remedy="Set the number of frames to 1 or more, and exclude videos without frames.",
        )
