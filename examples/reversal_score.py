"""Idea: measure what a model knows about the arrow of time, by tasks whose two classes are each other's reversal.

    accelerate launch examples/reversal_score.py

Prints the accuracy of a frozen backbone and of one with a motion adapter, each with a head that ignores the order of
frames and with one that aligns them. Order can only enter through the adapter or the head. Without both, the accuracy
is at chance (50 %) however good the features are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from dmgal.adapters import load_adapter, pretrained
from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import FewShotRecognizer, ReversalSampler
from dmgal.episodes.evaluation import encode_videos, evaluate
from dmgal.episodes.heads import OTAM, BiMHM
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, TestTransform
from dmgal.videos.moving_shapes.generate import generate_moving_shapes


def backbones() -> dict[str, nn.Module]:
    """Return the models to measure by name."""
    adapted = load_adapter(load_backbone("tiny-clip"), pretrained("tiny-clip-motion"))
    return {"frozen": load_backbone("tiny-clip"), "motion adapter": adapted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"))
    parser.add_argument("--clips", type=int, default=30, help="videos per class")
    parser.add_argument("--episodes", type=int, default=2000)
    options = parser.parse_args()

    split_file = generate_moving_shapes(options.data, clips_per_class=options.clips)
    catalog = VideoCatalog.from_csv(split_file, options.data).split("test")  # its column "reversal" names the pairs
    tasks = ReversalSampler(
        catalog.reversal_pairs, catalog.labels, k_shot=1, n_query=1, num_pairs=1, num_episodes=options.episodes, seed=0
    )
    for model, backbone in backbones().items():
        for head in (BiMHM(center="video", eps=0.0), OTAM(center="video", eps=0.0)):
            recognizer = FewShotRecognizer(FrameEncoder(backbone), head)
            frames = FrameSampler(8, TestTransform(recognizer.encoder.image_size))
            states = encode_videos(recognizer, VideoDataset(ClipSource(catalog), frames))
            score = evaluate(recognizer, states, tasks).accuracy
            print(f"{model + ',':<16}{type(head).__name__:<6} {score} %")


if __name__ == "__main__":
    main()
