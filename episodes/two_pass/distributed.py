"""Gradients averaged over processes for steps that bypass DDP, and agreement of all processes on one two-pass plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**24
"""Number of elements that are sent at once."""


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each ``grad`` by its mean over all processes. With a single process, do nothing.

    A missing gradient counts as zero if another process has one, and stays missing otherwise. Call this once per
    optimizer step on every process, after all gradients are summed and before they are clipped.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    used = torch.tensor([parameter.grad is not None for parameter in trained], device=trained[0].device).int()
    dist.all_reduce(used, dist.ReduceOp.MAX)
    gradients = []
    for parameter, has_gradient in zip(trained, used.tolist(), strict=True):
        if has_gradient and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield groups of consecutive gradients of one dtype that are large enough to send efficiently."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (bucket[0].dtype != gradient.dtype or sum(map(Tensor.numel, bucket)) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def least_of_all_processes(choice: Any) -> Any:
    """Return the `TwoPass` choice that needs the least memory among all processes. Every process must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return choice
    choices: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(choices, choice)
    return min(choices, key=lambda candidate: (candidate["chunk"], len(candidate["kept"] or ())))
