"""Evaluation of a run or a frozen backbone on sampled, adaptively many or all episodes of a split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from torch import nn

from dmgal.episodes import EpisodeSampler, FewShotRecognizer, ReversalSampler
from dmgal.episodes.evaluation import Evaluation, evaluate
from dmgal.episodes.evaluation.exact_accuracy import ExactAccuracy, exact_accuracy
from dmgal.episodes.evaluation.states import pair_table, why_no_pair_scores
from dmgal.episodes.heads import HEADS, TextFusion
from dmgal.episodes.sampler import TaskSampler
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer, dtype_of
from dmgal.recipes.run.config import DataOverrides, Recipe
from dmgal.recipes.run.data import (
    build_catalog,
    data_as_json,
    seen_before,
    seen_classes,
    warn_of_seen,
)
from dmgal.recipes.run.distributed import evaluate_shared
from dmgal.recipes.run.encoding import EncodedSplit, Keep, encode_split, launched_device
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.layers import from_mapping, merge_layers, read_layer
from dmgal.recipes.run.ranges import SEEDS, TASKS, Range
from dmgal.recipes.run.tensors import read_tensors
from dmgal.recipes.run.text import TextOptions, choose_weight, text_as_json, with_class_texts, with_text
from dmgal.recipes.run.text_lora import learns_text, text_lora_of
from dmgal.recipes.run.weights import load_trained_state, without_folder
from dmgal.videos import VideoCatalog

DEFAULT_METHOD = "method/motion"
"""Layer of the recognizer that needs no training."""
MOST_EPISODES = 1_000_000
"""Upper limit of --until."""


@dataclass(frozen=True)
class Protocol:
    """Choice of episodes. The same seed gives every method the same episodes."""

    split: Literal["test", "val"] = "test"
    """test: the novel classes. Evaluate on them only once, for the final report."""
    n_way: Annotated[int | None, Range(1, TASKS), tyro.conf.arg(aliases=["--ways"])] = None
    """Classes per task. None: as in training."""
    k_shot: Annotated[int | None, Range(1, TASKS), tyro.conf.arg(aliases=["--shots"])] = None
    """Support videos per class. None: as in training."""
    n_query: Annotated[int, Range(1, TASKS), tyro.conf.arg(aliases=["--queries"])] = 1
    """Query videos per class."""
    episodes: Annotated[int, Range(1, 10**8)] = 10_000
    """Number of episodes. With --until: episodes before the interval is first checked."""
    until: Annotated[float | None, Range(0.01, 100)] = None
    """Continue until the half-width of the 95 % interval is this many points, at most to a million episodes. Because of
    the repeated checks, the interval covers the true accuracy slightly less often than 95 %."""
    seed: Annotated[int, Range(0, SEEDS)] = 0
    """Seed of the episodes."""

    def ways_and_shots(self, recipe: Recipe) -> tuple[int, int]:
        """Return the ways and shots in use, of which the recipe has those of the training."""
        return self.n_way or recipe.episode.n_way, self.k_shot or recipe.episode.k_shot


def load_run(
    run: Run, *, backbone: nn.Module | None = None, head: nn.Module | None = None
) -> tuple[Recipe, FewShotRecognizer]:
    """Return the recipe of a run and the recognizer with its best weights.

    If the run was trained with objects passed to ``dmgal.recipes.train.run``, pass the same objects here.
    """
    recipe = run.recipe()
    run.check_complete(recipe)
    adapter = run.adapter if run.adapter.exists() else None
    recognizer = build_recognizer(recipe, backbone=backbone, head=head, adapter=adapter)
    if recipe.text.lora is not None:
        cast(Any, recognizer.head).text_lora = run.text_lora
    if recipe.train.steps:
        weights = read_tensors(run.weights) if os.path.lexists(run.weights) else {}
        load_trained_state(recognizer, weights, run.weights)
    return recipe, recognizer.to(dtype_of(recipe.train.precision)).eval()


def is_run(folder: Path) -> bool:
    """Return True if the folder holds a run."""
    return os.path.lexists(folder / "recipe.yaml")


def default_recipe(backbone: str = "tiny-clip", expert: str | None = "tiny-clip-motion") -> Recipe:
    """Return the recipe of `DEFAULT_METHOD` with a backbone and a motion expert, or without one."""
    return from_mapping(
        Recipe, merge_layers([read_layer(DEFAULT_METHOD), {"backbone": {"name": backbone, "expert": expert}}])
    )


def evaluation_data(
    run: Run, trained: Recipe, overrides: DataOverrides, split: str, progress: bool, same_for_all: bool = False
) -> tuple[Recipe, VideoCatalog]:
    """Return the recipe with overrides and its catalog.

    In other data without splits, classes that the run has not seen in its own data are novel. With ``same_for_all``,
    all of them are, because runs that have seen different classes share the episodes. A warning names the seen ones.
    """
    recipe = overrides.over(trained)
    if not overrides.is_other_data:
        data = recipe.data
        if data.generate == "no" and data.split_file is None and not os.path.lexists(run.split):
            raise DmgalError(
                "The split of this run is missing.",
                received=f"{run.folder} without {run.split.name}",
                expected="the split.csv that dmgal train wrote, because a split drawn again may differ",
                remedy="Copy the run again, or pass --data.split-file.",
            )
        return recipe, build_catalog(recipe.data, progress, run.split)
    seen = seen_classes(trained.data, run.split)
    catalog = build_catalog(recipe.data, progress, seen=seen, same_for_all=same_for_all)
    warn_of_seen(catalog, split, seen)
    return recipe, catalog


def seen_in_training(run: Run, trained: Recipe, catalog: VideoCatalog, split: str) -> list[str]:
    """Return the classes of a split that the run has seen in its own data, by normalized name."""
    return seen_before(catalog, split, seen_classes(trained.data, run.split))


def protocol_as_json(protocol: Protocol, recipe: Recipe, catalog: VideoCatalog) -> dict[str, object]:
    """Return the options of a protocol with the ways and shots in use, and the data of its split."""
    n_way, k_shot = protocol.ways_and_shots(recipe)
    data = data_as_json(recipe.data, catalog.split(protocol.split))
    needs_text = getattr(HEADS.get(recipe.head.get("name", "")), "learns_text", False)
    lora = "" if recipe.text.lora is None else f" with a trained LoRA of rank {recipe.text.lora}"
    text = {"use": "support", "encoder": without_folder(recipe.backbone.name) + lora} if needs_text else None
    return {**vars(protocol), "n_way": n_way, "k_shot": k_shot, "data": data, "text": text}


def samplers(catalog: VideoCatalog, recipe: Recipe, protocol: Protocol) -> dict[str, TaskSampler]:
    """Return samplers by name: random classes, and tasks of reversal pairs if the catalog has any."""
    (n_way, k_shot), n_query = protocol.ways_and_shots(recipe), protocol.n_query
    num_episodes = protocol.episodes if protocol.until is None else max(protocol.episodes, MOST_EPISODES)
    rest = num_episodes, protocol.seed, catalog.class_names, catalog.groups
    by_name: dict[str, TaskSampler] = {"accuracy": EpisodeSampler(catalog.labels, n_way, k_shot, n_query, *rest)}
    pairs = catalog.reversal_pairs
    for num_pairs, name in ((1, "reversal_two_way"), (2, "reversal_four_way")):
        if len(pairs) >= num_pairs:
            by_name[name] = ReversalSampler(pairs, catalog.labels, k_shot, n_query, num_pairs, *rest)
    return by_name


def encode(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    progress: bool = True,
    keep: Keep | None = None,
) -> EncodedSplit:
    """Return the encoded split of a protocol, after a check that its tasks are possible.

    Support videos know the text of their class if the head has learned from it.
    """
    catalog = catalog.split(protocol.split)
    samplers(catalog, recipe, protocol)
    device = launched_device()
    encoded = encode_split(recognizer.to(device), recipe, catalog, keep or Keep(), protocol.split, device, progress)
    if learns_text(recognizer):
        texts = TextOptions().encode(recipe, catalog.class_names, text_lora_of(recognizer))
        return with_class_texts(encoded, texts)
    return encoded


def encode_with_text(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    options: TextOptions,
    progress: bool = True,
    keep: Keep | None = None,
) -> tuple[FewShotRecognizer, EncodedSplit, dict[str, object] | None]:
    """Return the recognizer with the text of the classes, the encoded split, and what a report says about the text.

    Without text, this is `encode`. If the weight of the text is open, validation classes decide.

    Raises:
        DmgalError: the text cannot be used, or the weight is open and there are no validation classes.
    """
    options.check_use()
    if options.use == "no":
        return recognizer, encode(recognizer, recipe, catalog, protocol, progress, keep), None
    is_chosen = options.use == "fuse" and options.weight is None
    if is_chosen and protocol.split == "val":
        raise DmgalError(
            "The weight of the text cannot be chosen on the classes that are reported.",
            received="--split val --text.use fuse",
            expected="novel classes, or the weight",
            remedy="Pass --text.weight, or --split test.",
        )
    if is_chosen and "val" not in (catalog.class_splits or ()):
        raise DmgalError(
            "The weight of the text cannot be chosen.",
            received="a data set without validation classes",
            expected="validation classes, or the weight",
            remedy="Pass --text.weight.",
        )
    # of all splits, so that names of two splits must differ
    texts = options.encode(recipe, catalog.class_names, text_lora_of(recognizer))
    recognizer = with_text(recognizer, recipe, replace(texts, weight=1.0), options.use == "only")
    head = cast(TextFusion, recognizer.head)
    if keep is not None and keep.folder is not None:  # the weight does not shape these states
        keep = replace(keep, folder=keep.folder / f"text_{options.use}")
    encoded = with_class_texts(encode(recognizer, recipe, catalog, protocol, progress, keep), texts)
    accuracies = None
    if is_chosen:
        (n_way, k_shot), validation = protocol.ways_and_shots(recipe), replace(protocol, split="val", n_way=2)
        of_validation = with_class_texts(encode(recognizer, recipe, catalog, validation, progress, keep), texts)
        episodes = recipe.train.validation_episodes
        accuracies = choose_weight(recognizer, of_validation, n_way, k_shot, protocol.n_query, episodes)
    else:
        head.weight = texts.weight
    return recognizer, encoded, text_as_json(options, texts, head.weight if options.use == "fuse" else None, accuracies)


def evaluate_tasks(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    encoded: EncodedSplit,
    protocol: Protocol,
    progress: bool = True,
    like: Mapping[str, Evaluation] | None = None,
    reversal: bool = True,
) -> dict[str, Evaluation]:
    """Return evaluations of an encoded split by the names of `samplers`. Every process must call this function.

    ``like`` determines the number of episodes of each kind instead of the protocol. ``reversal=False`` leaves out the
    tasks of reversal pairs.
    """
    catalog, evaluations = encoded.catalog, {}
    data = repr((recipe.data.generate, recipe.data.seed, catalog.class_names, tuple(catalog.videos)))
    for name, sampler in samplers(catalog, recipe, protocol).items():
        if name != "accuracy" and not reversal:
            continue
        if like is not None and name in like:
            sampler.num_episodes = len(like[name].accuracies)
        arguments = recognizer, encoded.states, sampler, launched_device(), progress, data
        if protocol.until is None or like is not None:
            evaluations[name] = evaluate_shared(*arguments, dtype=encoded.dtype)
        else:  # not shared: each check of the interval needs all earlier answers
            evaluations[name] = evaluate(
                *arguments, until=protocol.until, at_least=protocol.episodes, dtype=encoded.dtype
            )
    return evaluations


def exact_tasks(
    recognizer: FewShotRecognizer, recipe: Recipe, encoded: EncodedSplit, protocol: Protocol, progress: bool = True
) -> dict[str, ExactAccuracy]:
    """Return the expected accuracies over all episodes, by the names of `samplers`.

    Raises:
        DmgalError: scores depend on more than a pair of videos, or there are several shots.
    """
    catalog, states, (n_way, _) = encoded.catalog, encoded.states, protocol.ways_and_shots(recipe)
    check_exact(recognizer, recipe, protocol)
    states = states if encoded.dtype is None else states.to(encoded.dtype)
    table = pair_table(recognizer, states, launched_device(), progress)
    groups: dict[str, tuple[Sequence[Sequence[int]], int]] = {
        "accuracy": ([[c] for c in sorted(set(catalog.labels.tolist()))], n_way),
        "reversal_two_way": (catalog.reversal_pairs, 1),
        "reversal_four_way": (catalog.reversal_pairs, 2),
    }
    return {name: exact_accuracy(table, catalog.labels, *groups[name]) for name in samplers(catalog, recipe, protocol)}


def check_exact(recognizer: FewShotRecognizer, recipe: Recipe, protocol: Protocol) -> None:
    """Raise a DmgalError with the reason if the accuracy has no closed form."""
    _, k_shot = protocol.ways_and_shots(recipe)
    reason = f"{k_shot} shots" if k_shot > 1 else why_no_pair_scores(recognizer, k_shot)
    reason = reason if recipe.data.group is None else f"data.group: {recipe.data.group}, which excludes some episodes"
    if reason:
        raise DmgalError(
            "The accuracy over all episodes has no closed form here.",
            received=reason,
            expected="one shot, no task layer, a head that scores videos in pairs, and no groups",
            remedy="Use --until 0.2 for a narrow interval, or --shots 1.",
        )


def as_json(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, object]]:
    """Return means and half-widths in percent."""
    return {
        name: {
            "percent": round(evaluation.accuracy.mean, 3),
            "half_width": round(evaluation.accuracy.half_width, 3),
            "episodes": len(evaluation.accuracies),
            "episodes_hash": evaluation.episodes,
        }
        for name, evaluation in evaluations.items()
    }


def exact_as_json(accuracies: Mapping[str, ExactAccuracy], catalog: VideoCatalog) -> dict[str, object]:
    """Return the accuracies in percent, overall and by class."""
    return {
        name: {
            "percent": round(exact.mean, 6),
            "episodes": "all",
            "percent_by_class": {
                catalog.class_names[c]: round(value, 4) for c, value in zip(exact.classes, exact.by_class, strict=True)
            },
        }
        for name, exact in accuracies.items()
    }
