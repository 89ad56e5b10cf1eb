"""One plan for all processes of a training, though each has measured memory of its own."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def least_of_all_processes(choice: Any) -> Any:
    """The choice of a `TwoPass` that needs least memory; every process must ask, and all get the same."""
    if not (dist.is_available() and dist.is_initialized()):
        return choice
    choices: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(choices, choice)
    return min(choices, key=lambda one: (one["chunk"], len(one["kept"] or ())))
