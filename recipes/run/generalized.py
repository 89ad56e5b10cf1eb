"""Generalized few-shot accuracy: novel classes beside all base classes, and queries of both kinds.

Base classes are enrolled from as many clips as novel ones, and the clips of both kinds compete. The measures are the
accuracy on base queries, that on novel queries, and their harmonic mean, which is low if a method prefers one kind
(Y. Xian et al., CVPR 2017, for zero-shot learning; S. Gidaris and N. Komodakis, CVPR 2018, for few-shot episodes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.evaluation import Estimate, Evaluation
from dmgal.episodes.evaluation.states import PrecomputedStates
from dmgal.episodes.sampler import NovelBesideBase
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.run.distributed import evaluate_shared
from dmgal.recipes.run.encoding import Keep, launched_device
from dmgal.recipes.run.evaluation import Protocol, encode
from dmgal.videos import VideoCatalog


@dataclass(frozen=True)
class Generalized:
    """Accuracies in percent over episodes of base and novel classes.

    Attributes:
        base, novel: accuracy on the queries of each kind, among the classes of both.
        harmonic_mean: of the two. Its interval is that of a first-order expansion over the episodes.
        num_base: number of base classes in each episode.
        evaluation: the answers.
    """

    base: Estimate
    novel: Estimate
    harmonic_mean: Estimate
    num_base: int
    evaluation: Evaluation

    @staticmethod
    def of(evaluation: Evaluation, num_base: int) -> Generalized:
        """Return the accuracies of an evaluation whose first ``num_base`` classes are the base classes."""
        answers = evaluation.answers
        assert answers is not None
        kinds = []
        for of_kind in (answers.truth < num_base, answers.truth >= num_base):
            episodes, num_episodes = answers.episode[of_kind].long(), len(evaluation.accuracies)
            right = torch.zeros(num_episodes, dtype=torch.float64).index_add(0, episodes, answers.right[of_kind])
            kinds.append(right / torch.bincount(episodes, minlength=num_episodes))
        base, novel = kinds
        of_base, of_novel = Estimate.of_accuracies(base), Estimate.of_accuracies(novel)
        return Generalized(of_base, of_novel, harmonic_mean_of(base, novel), num_base, evaluation)

    def as_json(self) -> dict[str, object]:
        """Return means and half-widths in percent."""
        estimates = {"base": self.base, "novel": self.novel, "harmonic_mean": self.harmonic_mean}
        numbers: dict[str, object] = {
            name: {"percent": round(one.mean, 3), "half_width": round(one.half_width, 3)}
            for name, one in estimates.items()
        }
        counts = {"base_classes": self.num_base, "episodes": len(self.evaluation.accuracies)}
        return numbers | counts | {"episodes_hash": self.evaluation.episodes}

    def lines(self) -> Mapping[str, str]:
        """Return the accuracies as text, by their names."""
        return {"base": str(self.base), "novel": str(self.novel), "harmonic mean": str(self.harmonic_mean)}


def harmonic_mean_of(base: torch.Tensor, novel: torch.Tensor) -> Estimate:
    """Return the harmonic mean of the mean accuracies, with the interval of its first-order expansion.

    Args:
        base, novel: accuracy of each episode, ``(E,)`` in ``[0, 1]``.
    """
    first, second = base.mean(), novel.mean()
    total = first + second
    if total == 0:
        return Estimate.of_accuracies(base)
    slopes = 2 * (second / total) ** 2, 2 * (first / total) ** 2
    mean = 2 * first * second / total
    return Estimate.of(mean + slopes[0] * (base - first) + slopes[1] * (novel - second))


def evaluate_generalized(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    progress: bool = True,
    keep: Keep | None = None,
) -> Generalized:
    """Return the accuracies with all base classes and ``n_way`` novel classes in each episode.

    Every process must call this function.

    Raises:
        DmgalError: the data has no base classes, or too few videos of a class.
    """
    if "train" not in (catalog.class_splits or ()):
        raise DmgalError(
            "There are no base classes to put novel classes beside.",
            received="data without classes of the split train",
            expected="the data of the run, or other data with a split file",
            remedy="Remove --generalized, or pass --data.split-file.",
        )
    splits = []
    for name in ("train", protocol.split):
        ways = 2 if name == "train" else protocol.n_way  # of a check that is done below
        of_split = replace(protocol, split=cast(Any, name), n_way=ways)
        splits.append(encode(recognizer, recipe, catalog, of_split, progress, keep))
    base, novel = (split.catalog for split in splits)
    num_base, num_novel = len(base.class_names), len(novel.class_names)
    groups = None if base.groups is None or novel.groups is None else [*base.groups, *novel.groups]
    sampler = NovelBesideBase(
        range(num_base),
        range(num_base, num_base + num_novel),
        np.concatenate([base.labels, novel.labels + num_base]),
        *protocol.ways_and_shots(recipe),
        protocol.n_query,
        protocol.episodes,
        protocol.seed,
        [*base.class_names, *novel.class_names],
        groups,
    )
    states = PrecomputedStates.cat([split.states for split in splits])
    data = repr([(split.catalog.class_names, tuple(split.catalog.videos)) for split in splits])
    evaluation = evaluate_shared(recognizer, states, sampler, launched_device(), progress, data, dtype=splits[0].dtype)
    return Generalized.of(evaluation, num_base)
