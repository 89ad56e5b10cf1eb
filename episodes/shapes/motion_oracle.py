"""An oracle classifier of true trajectories, as an upper bound on the accuracy for moving shapes (ours).

The mean position, size and angle are removed, because they do not depend on the class. The class of the nearest
noiseless trajectory wins, over a grid of jitter and phase.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones.tiny_clip.drawing import Poses
from .motions import AMPLITUDE_JITTER, HEADING_JITTER, RATE_JITTER, Jitter, Motion, Offsets

JITTER_STEPS, PHASE_STEPS = 5, 36
# Typical distances within a class, in half pictures, log size and radians. They bring the quantities to one scale.
POSITION_UNIT, LOG_SIZE_UNIT, ANGLE_UNIT = 0.05, 0.05, 0.15


def classify_trajectories(poses: Poses, motions: Sequence[Motion]) -> Tensor:
    """Return the class of each of ``n`` trajectories, ``(n,)``, as an index into ``motions``.

    Each quantity of ``poses`` is ``(n, T)``.
    """
    observed = Offsets(poses.x.double(), poses.y.double(), poses.size.double().log(), poses.angle.double())
    times = torch.linspace(-1, 1, poses.x.shape[1], dtype=torch.float64)
    trajectories, jitter = _centered(observed), _jitter_grid()
    distances = [torch.cdist(trajectories, _centered(motion.offsets(times, jitter))).amin(dim=1) for motion in motions]
    return torch.stack(distances, dim=1).argmin(dim=1)


def _centered(offsets: Offsets) -> Tensor:
    quantities = (
        offsets.x / POSITION_UNIT,
        offsets.y / POSITION_UNIT,
        offsets.log_size / LOG_SIZE_UNIT,
        offsets.angle / ANGLE_UNIT,
    )
    return torch.cat([quantity - quantity.mean(dim=1, keepdim=True) for quantity in quantities], dim=1)


def _jitter_grid() -> Jitter:
    steps = torch.linspace(-1, 1, JITTER_STEPS, dtype=torch.float64)
    phases = torch.arange(PHASE_STEPS, dtype=torch.float64) * (2 * math.pi / PHASE_STEPS)
    axes = (1 + AMPLITUDE_JITTER * steps, 1 + RATE_JITTER * steps, HEADING_JITTER * steps, phases)
    grid = torch.tensor(list(itertools.product(*(axis.tolist() for axis in axes))), dtype=torch.float64)
    return Jitter(*grid.split(1, dim=1))
