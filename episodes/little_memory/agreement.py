"""Agreement of all training processes on one two-pass plan, although each measures its own memory."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def least_of_all_processes(choice: Any) -> Any:
    """Return the `TwoPass` choice that needs the least memory among all processes. Every process must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return choice
    choices: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(choices, choice)
    return min(choices, key=lambda candidate: (candidate["chunk"], len(candidate["kept"] or ())))
