"""Idea: compare two adapters fairly, on the same episodes, and report the interval of their paired difference.

    accelerate launch examples/compare_adapters.py

Trains both adapters with the same settings. Prints the accuracy of each on novel classes, and their difference with its
95 % interval over episodes, unpaired and paired. The paired one is narrower, because hard episodes are hard for both.
Repeat it over ``--seed``: the interval does not include the variance between trainings.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dmgal.episodes import EpisodeSampler
from dmgal.episodes.evaluation import Evaluation, encode_videos, evaluate, paired_difference
from dmgal.recipes.run.config import DataConfig, Recipe, TrainConfig
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.train import run
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, TestTransform
from dmgal.videos.moving_shapes.generate import generate_moving_shapes

ADAPTERS = {
    "smga": {"peft_type": "DMGAL", "cmga_blocks": []},
    "st_adapter": {"peft_type": "ST_ADAPTER"},
}
HEAD = {"name": "BiMHM", "center": "video", "logit_scale": 10.0, "eps": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compare_adapters"))
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"))
    parser.add_argument("--clips", type=int, default=30, help="videos per class")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    options = parser.parse_args()

    split_file = generate_moving_shapes(options.data, clips_per_class=options.clips)
    novel = VideoCatalog.from_csv(split_file, options.data).split("test")
    episodes = EpisodeSampler(novel.labels, n_way=5, k_shot=1, n_query=1, num_episodes=options.episodes, seed=0)
    data = DataConfig(root=options.data, split_file=split_file, keep_in_memory=True, num_workers=0)
    train = TrainConfig(steps=options.steps, seed=options.seed)
    results: dict[str, Evaluation] = {}
    for name, adapter in ADAPTERS.items():
        recipe = Recipe(data=data, adapter=adapter, head=HEAD, train=train)
        folder = run(recipe, options.out / f"{name}_seed{options.seed}")
        _, recognizer = load_run(folder)
        frames = FrameSampler(recipe.data.num_frames, TestTransform(recognizer.encoder.image_size))
        states = encode_videos(recognizer, VideoDataset(ClipSource(novel), frames))
        results[name] = evaluate(recognizer, states, episodes)
        print(f"{name}: {results[name].accuracy} %")

    (one, first), (other, second) = results.items()
    unpaired = math.hypot(first.accuracy.half_width, second.accuracy.half_width)
    print(f"{other} - {one}, unpaired: {second.accuracy.mean - first.accuracy.mean:.1f} ± {unpaired:.1f} points")
    print(f"{other} - {one}, paired: {paired_difference(second, first)} points")


if __name__ == "__main__":
    main()
