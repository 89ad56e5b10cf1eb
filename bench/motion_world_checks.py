"""Check of motion world: what is drawn beside the motion tells nothing, and one direction of time looks as the other.

    python -m dmgal.bench.motion_world_checks

Ridge regression is fitted to half of the clips of the novel classes and tested on the other half:

- from all drawn parameters except the motion (looks, places, background, light, camera, tempo): the class must be at
  chance;
- from tiny-clip's features averaged over time: a motion and its reversal must be at 50 %, and with the order of the
  frames they must not;
- from one random frame: how much poses and contacts tell, as they do in real clips. There is no target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
import tyro
from einops import rearrange
from torch import Tensor

from dmgal.bench.measuring import hardware, write_report
from dmgal.bench.moving_shapes_checks import image_features, interval_of_chance, ridge_accuracy
from dmgal.progress import progress_bar
from dmgal.videos.motion_world.clips import MotionWorld, draw_parameters
from dmgal.videos.motion_world.motions import all_motions, split_motions

RESULT = Path(__file__).parent / "results" / "motion_world_checks.json"
LONGEST = 16
"""Length of arrays that count as parameters. Longer ones are pictures of textures."""


class ClassAccuracy(TypedDict):
    """Result of a ridge regression, and the 95 % interval of the accuracy by chance."""

    accuracy_percent: float
    chance_percent: float
    interval_of_chance_percent: list[float]


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    seed: int = 0
    """Seed of the data set."""
    clips_per_class: int = 30
    """Clips of each novel class."""
    draws_per_class: int = 200
    """Drawn parameters of each novel class. Nothing is rendered for them."""
    out: Path = RESULT
    """Where the result goes."""


def numbers_in(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested dataclasses, sequences and small arrays, each with its place."""
    if value is None or isinstance(value, bool | int | float | np.number | np.bool_):
        yield name, 0.0 if value is None else float(value)
    elif isinstance(value, np.ndarray):
        if value.size <= LONGEST and np.issubdtype(value.dtype, np.number):
            yield from ((f"{name}[{place}]", float(number)) for place, number in enumerate(value.ravel()))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers_in(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield f"len({name})", float(len(value))
        for place, entry in enumerate(value):
            yield from numbers_in(entry, f"{name}[{place}]")


def parameter_table(world: MotionWorld, names: Sequence[str], draws: int) -> Tensor:
    """Return the drawn parameters of the clips of all classes, ``(classes * draws, P)``. What is absent is zero."""
    clips = [dict(numbers_in(draw_parameters(world.generator(name, clip)))) for name in names for clip in range(draws)]
    places = sorted({place for clip in clips for place in clip})
    return torch.tensor([[clip.get(place, 0.0) for place in places] for clip in clips], dtype=torch.float64)


def frame_features(world: MotionWorld, classes: Sequence[int], quiet: bool = False) -> dict[str, Tensor]:
    """Return the features ``(classes, clips, T, D)`` of all frames by the name of the feature."""
    sources, count = image_features(), world.clips_per_class
    found: dict[str, list[Tensor]] = {name: [] for name in sources}
    for index in progress_bar(classes, desc="classes", progress=not quiet):
        frames = torch.cat([world.clip(index, clip) for clip in range(count)])
        for name, feature in sources.items():
            found[name].append(rearrange(feature(frames), "(v t) d -> v t d", v=count))
    return {name: torch.stack(features) for name, features in found.items()}


def class_accuracy(features: Tensor) -> ClassAccuracy:
    """Return how well a ridge regression tells the classes of features ``(classes, clips, D)``, in percent."""
    classes, clips, _ = features.shape
    labels = torch.arange(classes).repeat_interleave(clips)
    is_training = torch.arange(clips).repeat(classes) % 2 == 0
    accuracy = ridge_accuracy(rearrange(features, "c v d -> (c v) d"), labels, is_training)
    interval = interval_of_chance(int((~is_training).sum()), 1 / classes)
    return {
        "accuracy_percent": round(100 * accuracy, 2),
        "chance_percent": round(100 / classes, 2),
        "interval_of_chance_percent": [round(100 * bound, 2) for bound in interval],
    }


def pair_accuracy(features: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[str, object]:
    """Return the mean accuracy within the pairs of classes, in percent, from features ``(classes, clips, D)``."""
    each = [class_accuracy(features[list(pair)])["accuracy_percent"] for pair in pairs]
    trials = len(pairs) * 2 * (features.shape[1] // 2)
    return {
        "accuracy_percent": round(float(np.mean(each)), 2),
        "interval_of_chance_percent": [round(100 * bound, 2) for bound in interval_of_chance(trials, 0.5)],
    }


def check(options: Options) -> dict[str, object]:
    """Measure everything on the novel classes."""
    world, motions = MotionWorld(seed=options.seed, clips_per_class=options.clips_per_class), all_motions()
    novel = split_motions(options.seed)["test"]
    names = [motions[index].name for index in novel]
    drawn = parameter_table(world, names, options.draws_per_class)
    pairs = [
        (place, names.index(motions[index].reversal or ""))
        for place, index in enumerate(novel)
        if motions[index].reversal and not motions[index].backward
    ]
    features = frame_features(world, novel)
    generator = torch.Generator().manual_seed(options.seed)
    moments = torch.randint(world.frames, (len(novel), options.clips_per_class), generator=generator)
    by_feature: dict[str, Callable[[Tensor], object]] = {
        "reversal_pairs_averaged_over_time": lambda frames: pair_accuracy(frames.mean(2), pairs),
        "reversal_pairs_in_order": lambda frames: pair_accuracy(frames[:, :, -4:].mean(2) - frames.mean(2), pairs),
        "one_random_frame": lambda frames: class_accuracy(
            frames.gather(2, moments[:, :, None, None].expand(-1, -1, 1, frames.shape[3]))[:, :, 0]
        ),
    }
    return {
        "classes": len(novel),
        "clips": len(novel) * options.clips_per_class,
        "pairs": len(pairs),
        "parameters": drawn.shape[1],
        "class_from_parameters": class_accuracy(rearrange(drawn, "(c v) d -> c v d", c=len(novel))),
        **{
            kind: {name: measured(frames) for name, frames in features.items()} for kind, measured in by_feature.items()
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Check, write and print the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    result = {
        "what": "motion world: what drawn parameters, features averaged over time and single frames tell",
        "seed": options.seed,
        "data_version": MotionWorld.VERSION,
        **hardware(),
        **check(options),
    }
    write_report(result, options.out)


if __name__ == "__main__":
    main()
