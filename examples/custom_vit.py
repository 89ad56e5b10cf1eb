"""Idea: adapters in a vision transformer of your own, trained on moving shapes, saved and loaded again.

    accelerate launch examples/custom_vit.py train --out runs/custom
    accelerate launch examples/custom_vit.py recognize --out runs/custom

The model needs no description: dmgal finds its blocks, tokens and final layers by observing a forward pass. Both print
the logits of the first task of novel classes, and the second process prints the same ones. The weights are random here,
unlike yours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.recipes.run.config import DataConfig, Recipe, TrainConfig
from dmgal.recipes.run.data import build_catalog, test_transform
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run
from dmgal.recipes.train import run
from dmgal.videos.dataset import ClipSource
from dmgal.videos.decoding.clip import FrameSampler
from dmgal.videos.moving_shapes.generate import generate_moving_shapes


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class MyViT(nn.Module):
    def __init__(self, image_size: int = 48, patch: int = 8, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.randn((image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = rearrange(self.patches(images), "b c h w -> b (h w) c") + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


def my_backbone() -> MyViT:
    torch.manual_seed(0)  # in place of loading your weights
    return MyViT().eval()


def first_test_logits(recognizer: FewShotRecognizer, recipe: Recipe) -> Tensor:
    catalog = build_catalog(recipe.data).split("test")
    sampler = EpisodeSampler(catalog.labels, n_way=5, k_shot=1, n_query=1, num_episodes=1, seed=0)
    transform = test_transform(recipe, recognizer.encoder.image_size)
    episodes = EpisodeDataset(ClipSource(catalog), sampler, FrameSampler(recipe.data.num_frames, transform))
    with torch.no_grad():
        return recognizer.eval()(episodes[0]).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "recognize"])
    parser.add_argument("--out", type=Path, default=Path("runs/custom"))
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"))
    parser.add_argument("--clips", type=int, default=30, help="videos per class")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    if options.action == "train":
        split_file = generate_moving_shapes(options.data, clips_per_class=options.clips)
        recipe = Recipe(
            data=DataConfig(root=options.data, split_file=split_file, keep_in_memory=True, num_workers=0),
            adapter={"peft_type": "DMGAL"},
            head={"name": "BiMHM", "center": "video", "logit_scale": 10.0, "eps": 0.0},
            train=TrainConfig(steps=options.steps),
        )
        run(recipe, options.out, backbone=my_backbone())
    recipe, recognizer = load_run(Run(options.out), backbone=my_backbone())
    print(first_test_logits(recognizer, recipe))


if __name__ == "__main__":
    main()
