"""Comparison of methods. Runs whose recipes differ only in the training seed form one method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dmgal.episodes.evaluation import Estimate, Evaluation
from dmgal.episodes.evaluation.accuracy import Answers
from dmgal.episodes.evaluation.statistics import (
    Disagreement,
    Interval,
    Spread,
    accuracy_by_class,
    bootstrap_over_classes,
    confusion,
    difference,
    spread_over_runs,
    strongest_disagreements,
)
from dmgal.episodes.sampler import TaskSampler
from dmgal.files import printable
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.layers import to_mapping
from dmgal.videos import VideoCatalog

CONFUSIONS_SHOWN, CLASSES_SHOWN = 5, 5
SEEDS_WANTED = 3


@dataclass(frozen=True)
class Method:
    """Runs of one recipe with any training seeds, on the same episodes."""

    name: str
    runs: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def spread(self) -> Spread:
        """Mean and spread of the accuracy over the runs."""
        return spread_over_runs(self.evaluations)


@dataclass(frozen=True)
class Pairing:
    """Comparison of a method with the first one."""

    method: Method
    first: Method
    over_episodes: Estimate
    over_classes: Interval
    by_class: Mapping[int, tuple[float, float]]
    """Accuracy of this method and of the first, in percent."""
    disagreements: tuple[Disagreement, ...]


def grouped(names: Sequence[str], recipes: Sequence[Recipe], evaluations: Sequence[Evaluation]) -> list[Method]:
    """Group runs into methods, in the order of their first runs."""
    groups: dict[str, list[int]] = {}
    for index, recipe in enumerate(recipes):
        same_seed = replace(recipe, train=replace(recipe.train, seed=0))
        groups.setdefault(json.dumps(to_mapping(same_seed), sort_keys=True, default=str), []).append(index)
    return [
        Method(
            name=names[indices[0]] if len(indices) == 1 else f"{names[indices[0]]} and {len(indices) - 1} more",
            runs=tuple(names[index] for index in indices),
            evaluations=tuple(evaluations[index] for index in indices),
        )
        for indices in groups.values()
    ]


def paired(method: Method, first: Method, num_disagreements: int = 5) -> Pairing:
    """Compare a method with another on the same episodes."""
    ours, theirs = accuracy_by_class(method.evaluations), accuracy_by_class(first.evaluations)
    return Pairing(
        method=method,
        first=first,
        over_episodes=difference(method.evaluations, first.evaluations),
        over_classes=bootstrap_over_classes(method.evaluations, first.evaluations),
        by_class={c: (ours[c], theirs[c]) for c in ours},
        disagreements=tuple(strongest_disagreements(method.evaluations, first.evaluations, num_disagreements)),
    )


def signed(difference: Estimate) -> str:
    """Return a difference in points with its sign and its interval."""
    return f"{difference.mean:+.1f} ± {difference.half_width:.1f}"


def methods_as_json(
    methods: Sequence[Method], pairings: Sequence[Pairing], catalog: VideoCatalog, sampler: TaskSampler
) -> dict[str, object]:
    """Return the full comparison, including all tables."""
    return {
        "methods": [
            {
                "method": method.name,
                "runs": method.runs,
                "percent": round(method.spread.mean, 3),
                "percent_by_run": [round(value, 3) for value in method.spread.values],
                "deviation_over_runs": _rounded(method.spread.deviation),
                "confusion": _confusion_as_json(method, catalog),
            }
            for method in methods
        ],
        "pairings": [_pairing_as_json(pairing, catalog, sampler) for pairing in pairings],
    }


def methods_as_text(methods: Sequence[Method], pairings: Sequence[Pairing], catalog: VideoCatalog) -> str:
    """Return a summary of the comparison. The full tables are in the JSON."""
    names = catalog.class_names
    lines = []
    for method in methods:
        runs = f"{len(method.runs)} run{'s' if len(method.runs) > 1 else ''}"
        lines += ["", f"{method.name}: {method.spread} %, {runs}", "  most often taken for another class:"]
        lines += [f"    {text}" for text in _worst_confusions(method, names)] or ["    never"]
    for pairing in pairings:
        lines += ["", f"{pairing.method.name} minus {pairing.first.name}, in points"]
        lines += [f"  over episodes, these models and classes: {signed(pairing.over_episodes)}"]
        lines += [f"  over classes, had others been drawn:     {pairing.over_classes}"]
        lines += [f"  over training seeds:                     {over_seeds(pairing)}"]
        lines += [f"  {text}" for text in _class_extremes(pairing, names)]
        lines += ["  they disagree most in"]
        lines += [f"    {line}" for found in pairing.disagreements for line in _as_lines(found, pairing, catalog)]
        lines += [] if pairing.disagreements else ["    no episode"]
    return "\n".join(lines)


def over_seeds(pairing: Pairing) -> str:
    """Return the difference of means over training seeds with its standard error, or why it is unknown."""
    ones, others = pairing.method.spread, pairing.first.spread
    fewest = min(len(ones.values), len(others.values))
    if ones.deviation is None or others.deviation is None:
        return f"unknown, with {fewest} run of one of them; train each with {SEEDS_WANTED} seeds"
    error = (ones.deviation**2 / len(ones.values) + others.deviation**2 / len(others.values)) ** 0.5
    few = f"; few runs, {SEEDS_WANTED} or more recommended" if fewest < SEEDS_WANTED else ""
    return f"{ones.mean - others.mean:+.1f}, standard error {error:.1f}{few}"


def _class_extremes(pairing: Pairing, names: Sequence[str]) -> list[str]:
    order = sorted(pairing.by_class, key=lambda c: pairing.by_class[c][0] - pairing.by_class[c][1])
    shown = {"better": order[::-1][:CLASSES_SHOWN], "worse": order[:CLASSES_SHOWN]}
    lines = []
    for word, classes in shown.items():
        wanted = 1 if word == "better" else -1
        found = [c for c in classes if wanted * (pairing.by_class[c][0] - pairing.by_class[c][1]) > 0]
        texts = [f"{names[c]} ({pairing.by_class[c][1]:.0f} to {pairing.by_class[c][0]:.0f} %)" for c in found]
        lines.append(f"most {word} classes: {', '.join(texts) or 'none'}")
    return lines


def worst_confusions(method: Method, num_classes: int, count: int) -> list[tuple[int, int, float, int]]:
    """Return the most frequent confusions: class, wrong answer, its share of the times it was offered, these times."""
    chosen, offered = confusion(method.evaluations, num_classes)
    np.fill_diagonal(chosen, 0)
    shares = chosen / np.maximum(offered, 1)
    order = np.argsort(-shares, axis=None, kind="stable")[:count]
    pairs = [divmod(int(index), num_classes) for index in order]
    return [(c, other, float(shares[c, other]), int(offered[c, other])) for c, other in pairs if chosen[c, other]]


def _worst_confusions(method: Method, names: Sequence[str]) -> list[str]:
    return [
        f"{names[c]} for {names[other]}: {100 * share:.0f} % of {times} times"
        for c, other, share, times in worst_confusions(method, len(names), CONFUSIONS_SHOWN)
    ]


def _as_lines(found: Disagreement, pairing: Pairing, catalog: VideoCatalog) -> list[str]:
    lines = [f"episode {found.episode}: {found.difference:+.0f} points"]
    for query in differing_queries(found, pairing, catalog):
        answers = f"{query['answer']} against {query['answer_of_first']}"
        lines.append(f"  {query['video']} of {query['class']}: {answers}")
    return lines


def differing_queries(found: Disagreement, pairing: Pairing, catalog: VideoCatalog) -> list[dict[str, str]]:
    """Return the queries that the first runs of the two methods answer differently."""
    ours, theirs = (_answers(method) for method in (pairing.method, pairing.first))
    names = catalog.class_names
    return [
        {
            "video": printable(catalog.videos[int(ours.video[place])]),
            "class": names[int(ours.truth[place])],
            "answer": names[int(ours.predicted[place])],
            "answer_of_first": names[int(theirs.predicted[place])],
        }
        for place in found.places
    ]


def _answers(method: Method) -> Answers:
    answers = method.evaluations[0].answers
    assert answers is not None
    return answers


def _pairing_as_json(pairing: Pairing, catalog: VideoCatalog, sampler: TaskSampler) -> dict[str, object]:
    names, ones, others = catalog.class_names, pairing.method.spread, pairing.first.spread
    return {
        "method": pairing.method.name,
        "first": pairing.first.name,
        "points": round(pairing.over_episodes.mean, 3),
        "half_width_over_episodes": round(pairing.over_episodes.half_width, 3),
        "bootstrap_over_classes_95": [round(pairing.over_classes.low, 3), round(pairing.over_classes.high, 3)],
        "points_mean_over_classes": round(pairing.over_classes.mean, 3),
        "deviation_over_runs": [_rounded(ones.deviation), _rounded(others.deviation)],
        "percent_by_class": {
            names[c]: {"method": round(values[0], 3), "first": round(values[1], 3)}
            for c, values in pairing.by_class.items()
        },
        "disagreements": [
            {
                "episode": found.episode,
                "points": round(found.difference, 3),
                "support": [printable(catalog.videos[video]) for video in sampler[found.episode].support],
                "queries": differing_queries(found, pairing, catalog),
            }
            for found in pairing.disagreements
        ],
    }


def _confusion_as_json(method: Method, catalog: VideoCatalog) -> dict[str, dict[str, list[int]]]:
    """Return for each class the classes it was confused with: number of answers, and of times offered."""
    chosen, offered = confusion(method.evaluations, len(catalog.class_names))
    return {
        name: {
            catalog.class_names[other]: [int(chosen[one, other]), int(offered[one, other])]
            for other in np.flatnonzero(chosen[one])
        }
        for one, name in enumerate(catalog.class_names)
        if offered[one].any()
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
