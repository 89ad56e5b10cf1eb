"""Program run by a test: two-pass training in a process with too little memory for all videos at once."""

from __future__ import annotations

import resource
from pathlib import Path

import peft
import torch
import torch.nn.functional as F

import dmgal.backbones
from dmgal.adapters import SmgaConfig
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.two_pass.memory import LiveBytes
from dmgal.episodes.two_pass.two_pass import TwoPass

VIDEOS = 16


def loss(output, episode):
    return F.cross_entropy(output.logits, episode.query_labels)


def gradients(model, two_pass, episode):
    model.zero_grad()
    two_pass.backward([episode], loss)
    return [p.grad for p in model.parameters() if p.grad is not None]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = peft.get_peft_model(dmgal.backbones.load_backbone("tiny-clip"), SmgaConfig(num_frames=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model = FewShotRecognizer(dmgal.backbones.FrameEncoder(model), BiMHM(center="video", logit_scale=10.0)).train()
    videos = torch.randint(0, 256, (VIDEOS, 4, 3, 48, 48), dtype=torch.uint8)
    labels = torch.arange(VIDEOS // 2)
    episode = Episode(videos[::2], labels, videos[1::2], labels, tuple(map(str, range(VIDEOS // 2))))
    for chunk in (1, 2, 4):  # the kernels of these sizes need memory of their own when they first run
        expected = gradients(model, TwoPass(model, chunk), episode)
    with LiveBytes() as live:
        model.encode(videos[:4])
    size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    limit = int(size.split()[1]) * 1024 + live.peak * VIDEOS // 4 // 2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    two_pass = TwoPass(model, VIDEOS)
    found = gradients(model, two_pass, episode)
    largest = max(gradient.abs().max() for gradient in expected)
    assert two_pass.planner.plan.chunk < VIDEOS
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * largest.item())
    print("same gradients", two_pass.planner.plan.chunk, f"{live.peak / 4e6:.1f} MB a video")


if __name__ == "__main__":
    main()
