"""Accuracy by the number of shots, from zero (class names alone) to many, on the same queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, Evaluation, paired_difference
from dmgal.episodes.sampler import FewerShots
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.distributed import evaluate_shared
from dmgal.recipes.run.encoding import EncodedSplit, Keep, launched_device
from dmgal.recipes.run.evaluation import Protocol, encode_with_text
from dmgal.recipes.run.text import TextOptions
from dmgal.videos import VideoCatalog


@dataclass(frozen=True)
class Point:
    """The accuracy with some number of shots.

    Attributes:
        name: the number of shots, or its range, such as ``1-5``.
        evaluation: answers to the same queries as those of the other points.
        gain: difference to the point before, in points. None for the first one.
        text: what a report says about the text, or None.
    """

    name: str
    evaluation: Evaluation
    gain: Estimate | None
    text: Mapping[str, Any] | None


def parse_shots(text: str) -> tuple[int, int]:
    """Return the smallest and the largest number of shots of ``5`` or ``1-5``.

    Raises:
        DmgalError: the text is neither, or has no clips beside others.
    """
    first, dash, last = text.partition("-")
    numbers = [int(part) for part in (first, last if dash else first) if part.isascii() and part.isdecimal()]
    is_range = len(numbers) == 2 and numbers[0] <= numbers[1] and (numbers[0] > 0 or numbers[1] == 0)
    if not is_range or numbers[1] > 10**4:
        raise DmgalError(
            "This is no number of shots.",
            received=text,
            expected="0 (class names alone), a number of clips such as 5, or a range such as 1-5",
            remedy="Correct --curve.",
        )
    return numbers[0], numbers[1]


def shot_curve(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    shots: Sequence[str],
    text: TextOptions,
    progress: bool = True,
    keep: Keep | None = None,
) -> list[Point]:
    """Return the accuracy of random classes for each number of shots. Every process must call this function.

    The support videos are nested, and all points have the same queries. In a range, the classes of an episode have
    different numbers of shots. With zero shots, class names alone are used. Otherwise ``text`` decides.

    Raises:
        DmgalError: a number of shots is not possible with these videos, or the text cannot be used.
    """
    ranges = {name: parse_shots(name) for name in dict.fromkeys(shots)}
    (n_way, _), most = protocol.ways_and_shots(recipe), max(1, *(last for _, last in ranges.values()))
    novel = catalog.split(protocol.split)
    tasks = protocol.n_query, protocol.episodes, protocol.seed, novel.class_names
    EpisodeSampler(novel.labels, n_way, most, *tasks)  # before videos are encoded
    points: list[Point] = []
    by_clips: EncodedSplit | None = None
    for name, (least, last) in ranges.items():
        use = replace(text, use="only", weight=None) if not last else TextOptions() if text.use == "no" else text
        one, encoded, described = recognizer, by_clips, None
        if encoded is None or use.use != "no":
            of_shots = replace(protocol, k_shot=max(1, last))
            one, encoded, described = encode_with_text(recognizer, recipe, catalog, of_shots, use, progress, keep)
        if use.use == "no":
            by_clips = encoded
        full = EpisodeSampler(encoded.catalog.labels, n_way, most, *tasks)
        sampler = FewerShots(full, max(1, least), max(1, last))
        device, data = launched_device(), repr((catalog.class_names, tuple(encoded.catalog.videos)))
        evaluation = evaluate_shared(one, encoded.states, sampler, device, progress, data, dtype=encoded.dtype)
        before = points[-1].evaluation if points else None
        gain = None if before is None else paired_gain(evaluation, before)
        points.append(Point(name, evaluation, gain, described))
    return points


def paired_gain(evaluation: Evaluation, before: Evaluation) -> Estimate:
    """Return the paired difference. The queries are the same, although the support videos differ."""
    return paired_difference(replace(evaluation, episodes=before.episodes), before)


def curve_as_json(points: Sequence[Point]) -> list[dict[str, object]]:
    """Return the accuracies and gains in percent and points."""
    return [
        {
            "shots": point.name,
            "percent": round(point.evaluation.accuracy.mean, 3),
            "half_width": round(point.evaluation.accuracy.half_width, 3),
            "gain": None if point.gain is None else round(point.gain.mean, 3),
            "gain_half_width": None if point.gain is None else round(point.gain.half_width, 3),
            "text": point.text,
        }
        for point in points
    ]


def curve_as_text(points: Sequence[Point]) -> str:
    """Return one line per number of shots."""
    lines = []
    for point in points:
        kind = "class names alone" if point.name == "0" else f"{point.name} shot{'s' * (point.name != '1')}"
        gain = "" if point.gain is None else f"  ({point.gain.mean:+.1f} ± {point.gain.half_width:.1f})"
        lines.append(f"  {kind:<20} {point.evaluation.accuracy} %{gain}")
    return "\n".join(lines)
