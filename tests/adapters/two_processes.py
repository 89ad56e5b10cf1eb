"""Program for two processes: train every adapter for three steps and print the difference between two processes."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from test_training_mechanics import CASES, awake
from torch.nn.parallel import DistributedDataParallel

from dmgal.backbones import FrameEncoder


def differences(name: str) -> tuple[float, float]:
    """Return the largest difference between the processes' weights, and the largest change of the weights."""
    model = awake(CASES[name]).train()
    parallel = DistributedDataParallel(FrameEncoder(model, pooling="cls+patch_mean"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = torch.cat([parameter.detach().flatten() for parameter in trained])
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(3):
        support, query = (torch.randn(2, 4, 3, 32, 32, generator=generator) for _ in range(2))
        optimizer.zero_grad()
        torch.cat(parallel(support, query)).square().mean().backward()
        optimizer.step()
    mine = torch.cat([parameter.detach().flatten() for parameter in trained])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    return (both[0] - both[1]).abs().max().item(), (mine - start).abs().max().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: differences(name) for name in CASES}
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
