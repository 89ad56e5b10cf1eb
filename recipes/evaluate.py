"""Measures a trained run on classes it has never seen.

    dmgal evaluate runs/mine                          novel classes, the run's own ways and shots
    dmgal evaluate runs/mine --shots 5 --split val
    dmgal evaluate runs/mine --until 0.2              as many episodes as it takes for ± 0.2 points
    dmgal evaluate runs/mine --exact                  over all episodes there are, without drawing one
    torchrun --nproc_per_node 2 -m dmgal.recipes.evaluate runs/mine     in two processes, to the same bits

Every video is encoded once, and its state kept in the run's folder for the next time. Where a split holds motions
together with their time reversals, tasks of only these are added: two-way tasks of one pair (chance 50 %) and four-way
tasks of two, where a model that is blind to the order of frames cannot pass 50 %.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import nn

from dmgal.episodes import EpisodeSampler, Evaluation, FewShotRecognizer, ReversalSampler, VideoCatalog, evaluate
from dmgal.episodes.exact_accuracy import ExactAccuracy, exact_accuracy
from dmgal.episodes.listing import printable
from dmgal.episodes.sampler import TaskSampler
from dmgal.episodes.states.pair_scores import pair_table, why_no_pair_scores
from dmgal.errors import DmgalError
from dmgal.recipes.build import build_catalog, build_recognizer, dtype_of
from dmgal.recipes.config import Recipe
from dmgal.recipes.data_overrides import DataOverrides
from dmgal.recipes.encoded import EncodedSplit, Keep, Kept, encode_split, launched_device, launched_processes
from dmgal.recipes.entry import as_description, run_recipe
from dmgal.recipes.runs import Run, environment, read_tensors
from dmgal.recipes.saving.weights import load_trained_state
from dmgal.recipes.training.sharding import evaluate_shared

MOST_EPISODES = 1_000_000
"""Where --until gives up."""


@dataclass(frozen=True)
class Protocol:
    """Which episodes; the same seed gives every method the same ones."""

    split: Literal["test", "val"] = "test"
    """test: the novel classes. Look at them once, for the report."""
    n_way: Annotated[int | None, tyro.conf.arg(aliases=["--ways"])] = None
    """None: as in training."""
    k_shot: Annotated[int | None, tyro.conf.arg(aliases=["--shots"])] = None
    """None: as in training."""
    n_query: Annotated[int, tyro.conf.arg(aliases=["--queries"])] = 1
    """Query videos per class."""
    episodes: int = 10_000
    """With --until: how many before the first look at the interval."""
    until: float | None = None
    """Go on, at most to a million episodes, until the half-width of the 95 % interval is this many points. Who looks
    again and again and stops when it pleases gets an interval that covers the truth a little less often than 95 %."""
    seed: int = 0


@dataclass(frozen=True)
class Evaluate:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, as dmgal train writes it."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    exact: bool = False
    """The expected accuracy over all one-shot episodes in closed form, without sampling error; for heads that score
    videos in pairs, without a task layer."""
    states: Kept = "disk"
    """Where the videos' states are kept. disk: as computed, in the run's folder; float16: there in half the room, but
    INEXACT, predictions may differ, and the results say so; memory: nowhere."""
    cache: Path | None = None
    """Another folder for the states than RUN/states."""
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """No progress bars."""


def load_run(
    run: Run, *, backbone: nn.Module | None = None, head: nn.Module | None = None
) -> tuple[Recipe, FewShotRecognizer]:
    """The recipe of a run and the recognizer with its best weights.

    A run that was trained on objects of your own (see ``dmgal.recipes.train.run``) needs them again.
    """
    recipe = run.recipe()
    run.check_complete(recipe)
    adapter = run.adapter if run.adapter.exists() else None
    recognizer = build_recognizer(recipe, backbone=backbone, head=head, adapter=adapter)
    if run.weights.exists():
        load_trained_state(recognizer, read_tensors(run.weights), run.weights)
    return recipe, recognizer.to(dtype_of(recipe.train.precision)).eval()


def samplers(catalog: VideoCatalog, recipe: Recipe, protocol: Protocol) -> dict[str, TaskSampler]:
    """The tasks of a protocol by name: random classes, and where there are reversal pairs, only these."""
    k_shot, n_query = protocol.k_shot or recipe.episode.k_shot, protocol.n_query
    num_episodes = protocol.episodes if protocol.until is None else max(protocol.episodes, MOST_EPISODES)
    tasks = k_shot, n_query, num_episodes, protocol.seed, catalog.class_names
    found: dict[str, TaskSampler] = {
        "accuracy": EpisodeSampler(catalog.labels, protocol.n_way or recipe.episode.n_way, *tasks)
    }
    pairs = catalog.reversal_pairs
    for num_pairs, name in ((1, "reversal_two_way"), (2, "reversal_four_way")):
        if len(pairs) >= num_pairs:
            num_tasks = k_shot, n_query, num_pairs, num_episodes, protocol.seed, catalog.class_names
            found[name] = ReversalSampler(pairs, catalog.labels, *num_tasks)
    return found


def measure(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    progress: bool = True,
    *,
    keep: Keep | None = None,
    like: Mapping[str, Evaluation] | None = None,
) -> dict[str, Evaluation]:
    """All tasks of a protocol on one split of a catalog, from videos that are encoded once.

    Args:
        keep: where to keep the states; None: in memory.
        like: take as many episodes of each kind as these evaluations, whatever the protocol says.

    Returns:
        Evaluations by the names of `samplers`, on every process.
    """
    encoded = encode(recognizer, recipe, catalog, protocol, progress, keep)
    return evaluate_tasks(recognizer, recipe, encoded, protocol, progress, like)


def encode(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    catalog: VideoCatalog,
    protocol: Protocol,
    progress: bool = True,
    keep: Keep | None = None,
) -> EncodedSplit:
    """The split of a protocol, encoded; first of all its tasks are known to be possible."""
    catalog = catalog.split(protocol.split)
    samplers(catalog, recipe, protocol)
    device = launched_device()
    return encode_split(recognizer.to(device), recipe, catalog, keep or Keep(), protocol.split, device, progress)


def evaluate_tasks(
    recognizer: FewShotRecognizer,
    recipe: Recipe,
    encoded: EncodedSplit,
    protocol: Protocol,
    progress: bool = True,
    like: Mapping[str, Evaluation] | None = None,
) -> dict[str, Evaluation]:
    """Evaluations of an encoded split, by the names of `samplers`, to which every process must contribute its share."""
    catalog, found = encoded.catalog, {}
    data = repr((recipe.data.generate, recipe.data.seed, catalog.class_names, tuple(catalog.videos)))
    for name, sampler in samplers(catalog, recipe, protocol).items():
        if like is not None and name in like:
            sampler.num_episodes = len(like[name].accuracies)
        arguments = recognizer, encoded.states, sampler, launched_device(), progress, data
        if protocol.until is None or like is not None:
            found[name] = evaluate_shared(*arguments, dtype=encoded.dtype)
        else:  # whoever looks at the interval has to have all that was answered before
            found[name] = evaluate(*arguments, until=protocol.until, at_least=protocol.episodes, dtype=encoded.dtype)
    return found


def exact_tasks(
    recognizer: FewShotRecognizer, recipe: Recipe, encoded: EncodedSplit, protocol: Protocol, progress: bool = True
) -> dict[str, ExactAccuracy]:
    """The expected accuracies over all episodes, by the names of `samplers`.

    Raises:
        DmgalError: scores depend on more than a pair of videos, or there are several shots.
    """
    catalog, states = encoded.catalog, encoded.states
    check_exact(recognizer, recipe, protocol)
    states = states if encoded.dtype is None else states.to(encoded.dtype)
    table = pair_table(recognizer, states, launched_device(), progress)
    groups: dict[str, tuple[Sequence[Sequence[int]], int]] = {
        "accuracy": ([[c] for c in sorted(set(catalog.labels.tolist()))], protocol.n_way or recipe.episode.n_way),
        "reversal_two_way": (catalog.reversal_pairs, 1),
        "reversal_four_way": (catalog.reversal_pairs, 2),
    }
    return {name: exact_accuracy(table, catalog.labels, *groups[name]) for name in samplers(catalog, recipe, protocol)}


def check_exact(recognizer: FewShotRecognizer, recipe: Recipe, protocol: Protocol) -> None:
    """Refuse what has no closed form, with the reason."""
    k_shot = protocol.k_shot or recipe.episode.k_shot
    reason = f"{k_shot} shots" if k_shot > 1 else why_no_pair_scores(recognizer, k_shot)
    if reason:
        raise DmgalError(
            "The accuracy over all episodes has no closed form here.",
            received=reason,
            expected="one shot, no task layer, and a head that scores videos in pairs",
            remedy="use --until 0.2 for an interval as narrow as you wish, or --shots 1",
        )


def as_json(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Means and half-widths in percent."""
    return {
        name: {
            "percent": round(evaluation.accuracy.mean, 3),
            "half_width": round(evaluation.accuracy.half_width, 3),
            "episodes": len(evaluation.accuracies),
            "episodes_hash": evaluation.episodes,
        }
        for name, evaluation in evaluations.items()
    }


def exact_as_json(accuracies: Mapping[str, ExactAccuracy], catalog: VideoCatalog) -> dict[str, Any]:
    """In percent, also by class."""
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


def main(argv: list[str] | None = None) -> int | None:
    """Evaluate the run of a command line."""
    options = tyro.cli(
        Evaluate,
        prog="dmgal evaluate",
        args=sys.argv[1:] if argv is None else argv,
        description=as_description(__doc__),
    )
    run, protocol, progress = Run(options.run), options.protocol, not options.quiet
    recipe, recognizer = load_run(run)
    recipe = options.data.over(recipe)
    if options.exact:
        check_exact(recognizer, recipe, protocol)
    keep = Keep(options.states, options.cache or options.run / "states", launched_processes())
    catalog = build_catalog(recipe.data, progress and not keep.processes.rank, run.split)
    encoded = encode(recognizer, recipe, catalog, protocol, progress, keep)
    helps, progress = keep.processes.rank > 0, progress and not keep.processes.rank
    if options.exact:
        if helps:
            return 0
        exact = exact_tasks(recognizer, recipe, encoded, protocol, progress)
        results, lines = exact_as_json(exact, encoded.catalog), {name: f"{a.mean:.3f}" for name, a in exact.items()}
    else:
        evaluations = evaluate_tasks(recognizer, recipe, encoded, protocol, progress)
        if helps:
            return 0
        results, lines = as_json(evaluations), {name: str(e.accuracy) for name, e in evaluations.items()}
    _report(options, recipe, results, lines, run)
    return 0


def _report(options: Evaluate, recipe: Recipe, results: Mapping[str, Any], lines: Mapping[str, str], run: Run) -> None:
    """Print the results, and write them."""
    protocol = options.protocol
    ways, shots = protocol.n_way or recipe.episode.n_way, protocol.k_shot or recipe.episode.k_shot
    how = "all episodes, exact" if options.exact else f"{protocol.episodes} episodes, 95 % intervals over them"
    if protocol.until is not None and not options.exact:
        how = f"until ± {protocol.until:g}, 95 % intervals over the episodes"
    print(f"{printable(str(options.run))}: {protocol.split} classes, {shots}-shot, {how}")
    for name, text in lines.items():
        label = f"{ways}-way accuracy" if name == "accuracy" else name.replace("_", " ")
        number = results[name]["episodes"]
        print(f"  {label:<20} {text} %{f'  ({number} episodes)' if protocol.until and not options.exact else ''}")
    result: dict[str, Any] = {"protocol": vars(protocol), "results": results, "environment": environment()}
    if options.states == "float16":
        print("  INEXACT: states were kept as float16; predictions may differ from those of exact states")
        result["inexact"] = "states were kept as float16"
    amount = "all" if options.exact else f"{protocol.episodes}"
    if protocol.until is not None and not options.exact:
        amount = f"until{protocol.until:g}_at_least_{protocol.episodes}"
    suffix = "_float16" if options.states == "float16" else ""
    path = run.write_result(
        f"{protocol.split}_{ways}way_{shots}shot_{protocol.n_query}query_{amount}episodes_seed{protocol.seed}{suffix}",
        result,
    )
    print(f"written: {printable(str(path))}")


if __name__ == "__main__":
    run_recipe(main)
