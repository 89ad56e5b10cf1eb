"""Small galleries of random and of clustered states, and their tasks."""

from __future__ import annotations

from dataclasses import replace

import torch

from dmgal.backbones import VideoState
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.gallery.gallery import Gallery
from dmgal.episodes.gallery.task import GalleryTask
from dmgal.episodes.heads import BiMHM

FRAMES = 4


def undivided(**tensors):
    return PrecomputedStates.undivided(VideoState(tensors))


def gallery(counts, seed=0, **changes):
    """Make a gallery with ``counts`` clips per class, and one view of each clip that is the only one of its class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label, count in enumerate(counts.values()) for _ in range(count)])
    clips = [f"{name}/{place}" for name, count in counts.items() for place in range(count)]
    states = undivided(
        frames=torch.randn(len(clips), FRAMES, 6, generator=generator),
        other=torch.randn(len(clips), 2, generator=generator),
    )
    alone = torch.tensor(
        [place for place, label in enumerate(labels) if (labels == label).sum() == 1], dtype=torch.long
    )
    made = Gallery(
        class_names=tuple(counts),
        labels=labels,
        clips=tuple(clips),
        contents=tuple(hash((seed, clip)) % 2**64 for clip in clips),
        states=states,
        views=states.select(alone).map(lambda tensor: tensor + 0.01),
        view_clips=alone,
        made_with={"backbone": "tiny", "frames": str(FRAMES)},
    )
    return replace(made, **changes)


def task(made, negatives=None):
    """Make the task of a gallery for a Bi-MHM that compares the states directly."""
    states = undivided(frames=made.states.query["frames"])
    recognizer = FewShotRecognizer(NoEncoder(), BiMHM(center="none", eps=0.0))
    return GalleryTask(recognizer, states, made.labels, negatives=negatives)


class NoEncoder(torch.nn.Module):
    """An encoder that is never called."""

    has_task_layer = False


def clustered(counts, spread=0.05):
    """Make a gallery with one compact, distant cluster of states per class."""
    made = gallery(counts)
    generator = torch.Generator().manual_seed(5)
    centers = 10 * torch.eye(6)[: made.n_way, None]  # (n_way, 1, 6)
    noise = spread * torch.randn(made.states.query["frames"].shape, generator=generator)
    states = undivided(frames=centers[made.labels] + noise)
    views = states.select(made.view_clips)
    return replace(made, states=states, views=views.map(lambda tensor: tensor + 0.01))
