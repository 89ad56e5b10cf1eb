"""Idea: a training objective of your own, as a head object. A clip in reverse should look less like its class.

    accelerate launch examples/own_objective.py
    torchrun --nproc_per_node 2 examples/own_objective.py

A head may return losses beside its logits, and training adds them to the cross-entropy. This one compares each query
with its own time reversal. Prints the additional loss of the first and last step, and the accuracy on pairs of novel
classes that are each other's reversal (chance 50 %).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import softplus

from dmgal.backbones import VideoState
from dmgal.episodes import EpisodeOutput, TaskTargets
from dmgal.episodes.heads import FrameAligned
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, encode, exact_tasks, load_run
from dmgal.recipes.train import run
from dmgal.videos.moving_shapes.generate import generate_moving_shapes


class ArrowOfTime(FrameAligned):
    """Frame-aligned matching with a loss that ranks a query above its reversal."""

    loss_weights = {"reversal": 0.5}

    def __init__(self) -> None:
        super().__init__(center="video", logit_scale=10.0, eps=0.0)

    def compare(
        self, support: VideoState, labels: Tensor, query: VideoState, targets: TaskTargets | None = None
    ) -> EpisodeOutput:
        logits = super().compare(support, labels, query).logits  # (Q, n_way)
        if targets is None:
            return EpisodeOutput(logits)
        backward = VideoState({name: frames.flip(1) for name, frames in query.items()})  # frames (Q, T, D)
        difference = super().compare(support, labels, backward).logits - logits
        return EpisodeOutput(logits, {"reversal": softplus(difference.gather(1, targets.query_labels[:, None])).mean()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_objective"))
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"))
    parser.add_argument("--clips", type=int, default=30, help="videos per class")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()

    split_file = generate_moving_shapes(options.data, clips_per_class=options.clips)
    recipe = Recipe(
        data=DataConfig(root=options.data, split_file=split_file, keep_in_memory=True, num_workers=0),
        adapter={"peft_type": "DMGAL", "cmga_blocks": []},
        episode=EpisodeConfig(n_way=5, k_shot=1, n_query=1),
        train=TrainConfig(steps=options.steps, tasks_per_step=2),  # one or two processes give the same result
    )
    folder = run(recipe, options.out, head=ArrowOfTime())
    if not PartialState().is_main_process:
        return
    losses = [entry["losses"]["reversal"] for entry in folder.log_entries() if "losses" in entry]
    recipe, recognizer = load_run(folder, head=ArrowOfTime())
    encoded = encode(recognizer, recipe, build_catalog(recipe.data), Protocol())
    accuracy = exact_tasks(recognizer, recipe, encoded, Protocol())["reversal_two_way"].mean
    print(f"reversal loss: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    print(f"accuracy on pairs of reversals, over all tasks: {accuracy:.1f} %")


if __name__ == "__main__":
    main()
