"""Accuracy by the number of shots, from class names alone to ten clips, on the classes of ``bench/text.py``.

    python -m dmgal.bench.shots

Frozen tiny-clip and ``method/motion``, with clips alone and with clips and text. The weight of the text is chosen on
validation classes for each number of shots. All points of a curve have the same queries, and episodes with more shots
contain those with fewer. ``1-5``: the classes of an episode have different numbers of shots. Writes
``bench/results/shots.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import tyro

from dmgal.backbones import encode_class_names, load_text_encoder
from dmgal.bench.measuring import hardware, write_report
from dmgal.bench.text import METHODS, TEMPLATES, WAYS, Classes, encoded, looks, motions
from dmgal.episodes import EpisodeSampler
from dmgal.episodes.evaluation import evaluate
from dmgal.episodes.heads import TextFusion
from dmgal.episodes.sampler import FewerShots
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.layers import from_mapping, read_layer
from dmgal.recipes.run.shots import Point, curve_as_json, paired_gain, parse_shots
from dmgal.recipes.run.text import choose_weight, with_text

SHOTS = ("1", "2", "3", "5", "10", "1-5")


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    clips: int = 12
    """Clips per class."""
    episodes: int = 2000
    """Number of episodes."""
    validation_episodes: int = 500
    """Number of episodes for the choice of the weight."""
    out: Path = Path(__file__).parent / "results" / "shots.json"


def curves(method: str, validation: Classes, novel: Classes, options: Options) -> dict[str, object]:
    """Return the curves of clips alone and of clips and text for one method."""
    layer, changes = METHODS[method]
    recipe = from_mapping(Recipe, {**read_layer(f"method/{layer}"), **changes})
    texts = encode_class_names(load_text_encoder("tiny-clip"), (*validation.captions, *novel.captions), TEMPLATES)
    texts = replace(texts, class_names=(*validation.catalog.class_names, *novel.catalog.class_names))
    recognizer = with_text(build_recognizer(recipe).eval(), recipe, texts, is_only=False)
    head = cast(TextFusion, recognizer.head)
    visual, splits = head.head, [encoded(recognizer, classes, texts) for classes in (validation, novel)]
    names, most = novel.catalog.class_names, max(parse_shots(text)[1] for text in SHOTS)
    full = EpisodeSampler(novel.catalog.labels, WAYS, most, 1, options.episodes, 0, names)
    found: dict[str, list[Point]] = {"clips": [], "clips and text": []}

    def add(kind: str, shots: str, sampler: FewerShots) -> None:
        evaluation, points = evaluate(recognizer, splits[1].states, sampler, progress=False), found[kind]
        gain = paired_gain(evaluation, points[-1].evaluation) if points else None
        points.append(Point(shots, evaluation, gain, None if kind == "clips" else {"weight": head.weight}))

    head.head, head.weight = None, 1.0
    add("clips and text", "0", FewerShots(full, 1, 1))
    head.head = visual
    for shots in SHOTS:
        least, last = parse_shots(shots)
        choose_weight(recognizer, splits[0], WAYS, last, 1, options.validation_episodes)
        add("clips and text", shots, FewerShots(full, least, last))
        head.weight = 0.0
        add("clips", shots, FewerShots(full, least, last))
    return {kind: curve_as_json(points) for kind, points in found.items()}


def main() -> None:
    """Measure and write the report."""
    options = tyro.cli(Options, description=__doc__)
    results: dict[str, object] = {}
    for name, data in (("motions", motions), ("looks", looks)):
        validation, novel = data("val", options.clips), data("test", options.clips)
        method = "motion" if name == "motions" else "frozen, not centered"
        results[name] = {method: curves(method, validation, novel, options)}
    report = {"ways": WAYS, "episodes": options.episodes, "clips_per_class": options.clips, "results": results}
    write_report({**report, "hardware": hardware()}, options.out, show=False)


if __name__ == "__main__":
    main()
