"""Averaging of the gradients of two real processes, including gradients that only one of them has."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from dmgal.episodes.two_pass import two_pass as module
from dmgal.episodes.two_pass.two_pass import average_gradients


def parameters():
    shapes = [
        ((3, 2), torch.float32),
        ((5,), torch.float64),
        ((4,), torch.float32),
        ((2,), torch.float32),
        ((), torch.float32),
    ]
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes]


def process(rank, rendezvous, out):
    torch.set_num_threads(1)
    module.BUCKET = 5  # several buckets
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    weights = parameters()
    weights[-1].requires_grad_(False)
    for index in (0, 1, 2)[: 3 - rank]:  # the third has a gradient on the first process only, the fourth on none
        weights[index].grad = torch.full_like(weights[index], (index + 1) * (10.0**rank))
    average_gradients(weights)
    torch.save([None if weight.grad is None else weight.grad.tolist() for weight in weights], f"{out}{rank}")
    dist.destroy_process_group()


def test_gradients_of_two_processes_are_averaged(tmp_path):
    multiprocessing.spawn(process, (str(tmp_path / "meet"), str(tmp_path / "out")), nprocs=2)
    for rank in range(2):
        averages = torch.load(tmp_path / f"out{rank}", weights_only=True)
        assert averages == [[[5.5, 5.5]] * 3, [11.0] * 5, [1.5] * 4, None, None]


def test_single_process_keeps_gradients():
    weights = parameters()
    weights[0].grad = torch.ones_like(weights[0])
    average_gradients(weights)
    assert torch.equal(weights[0].grad, torch.ones(3, 2)) and weights[1].grad is None
