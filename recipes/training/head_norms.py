"""Calibration of a new head's frozen batch norms: statistics measured on the videos of the first task.

A frozen batch norm without statistics divides by one. The attention of S-MGA then starts with a single winner in every
row. Statistics measured once before the first step keep each video's state independent of the other videos.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.recipes.build import freeze_batch_norm


@torch.no_grad()
def measure_head_norms(recognizer: FewShotRecognizer, episode: Episode) -> int:
    """Give the statistics of a task to the head's batch norms that have none, and return the number of these norms.

    Dropout draws from a separate random state, so later random numbers do not change.
    """
    head = recognizer.head
    modules = head.modules() if isinstance(head, nn.Module) else ()
    norms = [module for module in modules if isinstance(module, _BatchNorm) and not module.num_batches_tracked]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    recognizer.train()  # in evaluation mode a head may skip branches that only training uses
    freeze_batch_norm(recognizer)
    for norm in norms:
        norm.train()
        norm.momentum = None  # a cumulative mean over all batches
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recognizer(episode)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return len(norms)
