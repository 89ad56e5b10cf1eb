"""Does the text of the classes help? Moving shapes, whose classes are motions, and shapes whose classes are looks.

    python -m dmgal.bench.text

Writes ``bench/results/text.json``. The captions of motions are in words that tiny-clip knows: it was trained on stills,
and has words for directions, places and sizes, but none for movement. The other classes are a color and a shape, moving
at random. For frozen tiny-clip and ``method/motion``, the weight of the text is chosen on validation classes. Novel
classes are then recognized by clips, by text, and by both, on the same episodes, with paired differences.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import tyro
from torch import Generator, Tensor

from dmgal.backbones import ClassTexts, encode_class_names, load_text_encoder
from dmgal.bench.measuring import write_report
from dmgal.bench.motion_transfer import as_json
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Evaluation, encode_videos, evaluate, paired_difference
from dmgal.episodes.heads import TextFusion
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.encoding import EncodedSplit
from dmgal.recipes.run.folder import environment
from dmgal.recipes.run.layers import from_mapping, read_layer
from dmgal.recipes.run.text import choose_weight, with_class_texts, with_text
from dmgal.videos import VideoCatalog
from dmgal.videos.moving_shapes.clips import MovingShapes
from dmgal.videos.moving_shapes.drawing import COLORS, SHAPES, draw, random_appearance
from dmgal.videos.moving_shapes.motions import all_motions

METHODS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "frozen": ("frozen", {}),
    "frozen, not centered": ("frozen", {"head": {"name": "BiMHM", "logit_scale": 10.0, "eps": 0.0}}),
    "motion": ("motion", {}),
}
"""Layer of each method and the differences to it. Centered features keep what moves, the others also the looks."""
FRAMES, PIXELS, WAYS, SHOTS = 8, 48, 5, (1, 5)
TEMPLATES = ("{}", "a {}", "a shape with {}")
COMPASS = ("east", "southeast", "south", "southwest", "west", "northwest", "north", "northeast")
STEMS = {
    "arc_right": "right",
    "arc_left": "left",
    "zigzag": "striped",
    "oscillate": "left right",
    "stop_go": "middle",
    "go_stop": "center",
    "accelerate": "tiny large",
    "decelerate": "large tiny",
    "grow_move": "small large",
    "shrink_move": "large small",
    "spin_right": "top right bottom",
    "spin_left": "top left bottom",
    "orbit_right": "right disc",
    "orbit_left": "left disc",
}
"""Words of tiny-clip that are nearest to each kind of motion. A translation is only its direction."""
SPEEDS = {"slow": "small", "fast": "large", "narrow": "tiny", "wide": "medium"}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    clips: int = 20
    """Clips per class."""
    episodes: int = 5000
    """Number of episodes."""
    validation_episodes: int = 2000
    """Number of episodes for the choice of the weight."""
    out: Path = Path(__file__).parent / "results" / "text.json"


@dataclass(frozen=True)
class Classes:
    """Clips ``(V, T, 3, H, W)`` of novel or validation classes, their catalog, and the caption of each class."""

    videos: Tensor
    catalog: VideoCatalog
    captions: tuple[str, ...]


def caption(name: str) -> str:
    """Return a caption of a motion of moving shapes in words of tiny-clip."""
    words = [SPEEDS[word] for word in SPEEDS if word in name.split("_")]
    words += [text for stem, text in STEMS.items() if name.startswith(stem)]
    heading = re.search(r"\d{3}", name)
    if heading:
        words.append(f"pointing {direction(int(heading[0]))}")
    return " ".join(["shape", *words])


def direction(degrees: int) -> str:
    """Return a direction, clockwise from east, such as ``east southeast`` for 30 degrees."""
    nearest = COMPASS[round(degrees / 45) % len(COMPASS)]
    if degrees % 45 == 0:
        return nearest
    return f"{COMPASS[2 * round(degrees / 90) % len(COMPASS)]} {COMPASS[2 * (degrees // 90) + 1]}"


def motions(split: str, clips: int) -> Classes:
    """Return moving shapes of one split of seed 0. The motion adapter that ships has seen none of them."""
    shapes = MovingShapes(seed=0, clips_per_class=clips, frames=FRAMES, pixels=PIXELS)
    numbers = shapes.split()[split]
    videos = [shapes.clip(number, clip) for number in numbers for clip in range(clips)]
    names = [all_motions()[number].name for number in numbers]
    return _classes(videos, names, list(map(caption, names)), clips)


def looks(split: str, clips: int) -> Classes:
    """Return classes of a color and a shape, plain or textured, that move at random. A third is for validation."""
    pairs = [*itertools.product(range(len(COLORS)), range(len(SHAPES)))]
    pairs = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))]
    third = len(pairs) // 3
    pairs = pairs[:third] if split == "val" else pairs[third:]
    shapes, videos = MovingShapes(seed=0, clips_per_class=clips, frames=FRAMES, pixels=PIXELS), []
    for color, shape in pairs:
        generator = Generator().manual_seed(1000 * color + shape)
        look = random_appearance(clips, generator)
        second = (color + (look.second_color - look.color)) % len(COLORS)
        look = replace(look, color=torch.full((clips,), color), shape=torch.full((clips,), shape), second_color=second)
        numbers = torch.randint(len(all_motions()), (clips,), generator=generator).tolist()
        poses = [shapes.poses(number, clip) for clip, number in enumerate(numbers)]
        together = {name: torch.cat([vars(pose)[name] for pose in poses]) for name in vars(poses[0])}
        videos += [*draw(replace(poses[0], **together), look, PIXELS, generator)]
    names = [f"{[*COLORS][color]} {SHAPES[shape]}" for color, shape in pairs]
    return _classes(videos, names, names, clips)


def _classes(videos: Sequence[Tensor], names: Sequence[str], captions: Sequence[str], clips: int) -> Classes:
    labels = np.arange(len(names)).repeat(clips)
    paths = [f"{names[label]}/{index}" for index, label in enumerate(labels.tolist())]
    catalog = VideoCatalog(Path(), paths, labels, tuple(names))
    return Classes(torch.stack(list(videos)), catalog, tuple(captions))


def encoded(recognizer: FewShotRecognizer, classes: Classes, texts: ClassTexts) -> EncodedSplit:
    """Return the states of all clips with the text of their classes."""
    states = encode_videos(recognizer, classes.videos, progress=False)
    return with_class_texts(EncodedSplit(classes.catalog, states), texts)


def measure(method: str, validation: Classes, novel: Classes, options: Options) -> dict[str, object]:
    """Return accuracies by clips, text and both, and the paired differences to clips alone, by shots."""
    layer, changes = METHODS[method]
    recipe = from_mapping(Recipe, {**read_layer(f"method/{layer}"), **changes})
    encoder, results = load_text_encoder("tiny-clip"), dict[str, object]()
    texts = encode_class_names(encoder, (*validation.captions, *novel.captions), TEMPLATES)
    texts = replace(texts, class_names=(*validation.catalog.class_names, *novel.catalog.class_names))
    recognizer = with_text(build_recognizer(recipe).eval(), recipe, texts, is_only=False)
    head, visual = cast(TextFusion, recognizer.head), cast(TextFusion, recognizer.head).head
    splits = [encoded(recognizer, classes, texts) for classes in (validation, novel)]
    for shots in SHOTS:
        head.head = visual
        chosen = choose_weight(recognizer, splits[0], WAYS, shots, 1, options.validation_episodes)
        weight, found = head.weight, dict[str, Evaluation]()
        sampler = EpisodeSampler(novel.catalog.labels, WAYS, shots, 1, options.episodes, 0, novel.catalog.class_names)
        for name, head.weight, head.head in (("clips", 0.0, visual), ("text", 1.0, None), ("both", weight, visual)):
            found[name] = evaluate(recognizer, splits[1].states, sampler, progress=False)
        results[str(shots)] = {
            "weight": weight,
            "validation": {f"{value:g}": accuracy for value, accuracy in chosen.items()},
            "accuracy": {name: as_json(one.accuracy) for name, one in found.items()},
            "both - clips": as_json(paired_difference(found["both"], found["clips"])),
        }
        print(method, shots, results[str(shots)], flush=True)
    return results


def main(argv: list[str] | None = None) -> None:
    """Measure both data sets with both methods and write the report."""
    options = tyro.cli(Options, args=argv, description=__doc__)
    results: dict[str, dict[str, object]] = {}
    for name, make in (("motions", motions), ("looks", looks)):
        validation, novel = make("val", options.clips), make("test", options.clips)
        results[name] = {method: measure(method, validation, novel, options) for method in METHODS}
        results[name]["captions"] = dict(zip(novel.catalog.class_names, novel.captions, strict=True))
    kept = {key: value for key, value in environment().items() if key != "command"}
    write_report({"environment": kept, "episodes": options.episodes, "results": results}, options.out, show=False)


if __name__ == "__main__":
    main()
