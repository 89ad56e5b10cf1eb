"""All classes of motion world and their split into base, validation and novel classes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..moving_shapes.motions import all_motions as all_paths
from .stage.registry import Motion, alone, family, pair
from .stage.scenes import Wander
from .tables.changes import CHANGES
from .tables.encounters import ENCOUNTERS
from .tables.exercises import EXERCISES
from .tables.free_things import FREE
from .tables.gaits import GAITS
from .tables.gestures import GESTURES
from .tables.handling import HANDLING
from .tables.meetings import MEETINGS
from .tables.placing import PLACING
from .tables.postures import POSTURES

PATH_FAMILIES = ("translate", "rotate", "scale", "orbit", "oscillate", "zigzag", "stop_and_go", "accelerate", "arc")
PATHS_PER_FAMILY = 4  # pairs of moving shapes, evenly spaced
NOVEL_SHARE, VALIDATION_SHARE = 0.2, 0.1


@lru_cache(maxsize=1)
def all_motions() -> tuple[Motion, ...]:
    """Return all classes in a fixed order."""
    return (
        *family("solo", *GAITS, *GESTURES, *EXERCISES, *POSTURES),
        *family("duo", *ENCOUNTERS),
        *family("table", *PLACING, *HANDLING, *FREE, *MEETINGS),
        *family("shape", *CHANGES),
        *_paths(),
    )


def _paths() -> tuple[Motion, ...]:
    """Return paths of moving shapes in which left and right, up and down are labels."""
    groups: list[tuple[Motion, ...]] = []
    paths = all_paths()
    for name in PATH_FAMILIES:
        pairs = [(a, b) for a, b in zip(paths[::2], paths[1::2], strict=True) if a.family == name]
        step = max(1, len(pairs) // PATHS_PER_FAMILY)
        for first, second in pairs[::step][:PATHS_PER_FAMILY]:
            names = f"path_{first.name}", f"path_{second.name}"
            if first.reversal:
                groups.append(pair(*names, Wander(first), chiral=True))
            else:
                verb = f"path_{first.name.removesuffix('_slow')}"
                groups += [alone(n, Wander(p), verb, chiral=True) for n, p in zip(names, (first, second), strict=True)]
    return family("path", *groups)


def split_motions(seed: int) -> dict[str, tuple[int, ...]]:
    """Return the class indices of ``train`` (base), ``val`` and ``test`` (novel).

    Classes of one verb stay together, and so do a motion and its reversal. The seed draws the verbs; every family has
    about the same share in each split. A verb of several families belongs to the first of them.
    """
    rng = np.random.default_rng([seed, 7])
    motions = all_motions()
    verbs: dict[str, list[int]] = {}
    for index, motion in enumerate(motions):
        verbs.setdefault(motion.verb, []).append(index)
    families: dict[str, list[str]] = {}
    for verb, classes in verbs.items():
        families.setdefault(motions[classes[0]].family, []).append(verb)
    split: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for names in families.values():
        shuffled = [names[k] for k in rng.permutation(len(names))]
        novel, validation = round(NOVEL_SHARE * len(names)), round(VALIDATION_SHARE * len(names))
        for k, verb in enumerate(shuffled):
            part = "test" if k < novel else "val" if k < novel + validation else "train"
            split[part] += verbs[verb]
    return {name: tuple(sorted(classes)) for name, classes in split.items()}
