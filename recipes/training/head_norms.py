"""What a new head's batch norms normalize by where batch norms are frozen: the statistics of the first task's videos.

A frozen batch norm that no data has been through divides by one, and S-MGA's attention then starts with a single winner
in every row. Measured once, before the first step, the statistics keep every video's state its own.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.recipes.build import freeze_batch_norm


@torch.no_grad()
def measure_head_norms(recognizer: FewShotRecognizer, episode: Episode) -> int:
    """Gives the head's batch norms that are still as made the statistics of a task; how many there are.

    Dropout draws from a random state of its own, so that nothing after this draws otherwise.
    """
    head = recognizer.head
    every = [m for m in head.modules() if isinstance(m, _BatchNorm)] if isinstance(head, nn.Module) else []
    norms = [norm for norm in every if not norm.num_batches_tracked]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    recognizer.train()  # in evaluation a head may leave out what it learns from
    freeze_batch_norm(recognizer)
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean over all it is given
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recognizer(episode)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return len(norms)
