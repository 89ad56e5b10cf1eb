"""An oracle that reads true trajectories: how well the classes of moving shapes can be told apart at all.

Place, size and angle at the start are taken away, as no class has its own; then the nearest of many noiseless
trajectories of every class, over a grid of jitter and phase, wins. Ours.
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
# How far apart two trajectories of a class may well be, in half pictures, log size and radians: puts them on one scale.
PLACE_UNIT, LOG_SIZE_UNIT, ANGLE_UNIT = 0.05, 0.05, 0.15


def classify_trajectories(poses: Poses, motions: Sequence[Motion]) -> Tensor:
    """For each of ``n`` trajectories, ``(n, T)`` each quantity, the index of its class in ``motions``: ``(n,)``."""
    observed = Offsets(poses.x.double(), poses.y.double(), poses.size.double().log(), poses.angle.double())
    times = torch.linspace(-1, 1, poses.x.shape[1], dtype=torch.float64)
    trajectories, jitter = _without_start(observed), _jitter_grid()
    distances = [
        torch.cdist(trajectories, _without_start(motion.offsets(times, jitter))).amin(dim=1) for motion in motions
    ]
    return torch.stack(distances, dim=1).argmin(dim=1)  # (n, classes) -> (n,)


def _without_start(offsets: Offsets) -> Tensor:
    quantities = (
        offsets.x / PLACE_UNIT,
        offsets.y / PLACE_UNIT,
        offsets.log_size / LOG_SIZE_UNIT,
        offsets.angle / ANGLE_UNIT,
    )
    return torch.cat([quantity - quantity.mean(dim=1, keepdim=True) for quantity in quantities], dim=1)  # (n, 4T)


def _jitter_grid() -> Jitter:
    steps = torch.linspace(-1, 1, JITTER_STEPS, dtype=torch.float64)
    phases = torch.arange(PHASE_STEPS, dtype=torch.float64) * (2 * math.pi / PHASE_STEPS)
    axes = (1 + AMPLITUDE_JITTER * steps, 1 + RATE_JITTER * steps, HEADING_JITTER * steps, phases)
    grid = torch.tensor(list(itertools.product(*(axis.tolist() for axis in axes))), dtype=torch.float64)
    return Jitter(*grid.split(1, dim=1))
