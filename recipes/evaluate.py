"""Evaluation of a trained run on unseen classes.

    dmgal evaluate runs/mine                          novel classes, ways and shots of training
    dmgal evaluate runs/mine --shots 5 --split val
    dmgal evaluate runs/mine --until 0.2              as many episodes as needed for ± 0.2 points
    dmgal evaluate runs/mine --exact                  over all possible episodes, without sampling
    dmgal evaluate runs/mine --text.use fuse          with the text of the class names
    dmgal evaluate runs/mine --curve 0 1 2 5 1-5      accuracy by the number of shots, on the same queries
    dmgal evaluate runs/mine --generalized            novel classes beside all base classes
    dmgal evaluate runs/mine --data.root OTHER --out other.json       other data, see docs/evaluation.md
    torchrun --nproc_per_node 2 -m dmgal.recipes.evaluate runs/mine     in two processes, bit-identical

Every video is encoded once, and its state is cached in the run's folder. If a split contains motions together with
their time reversals, two more kinds of tasks are evaluated: two-way tasks of one pair (chance 50 %) and four-way tasks
of two pairs. A model that ignores the order of frames cannot exceed 50 % in either.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from dmgal.errors import DmgalError
from dmgal.recipes.reports.evaluation import EvaluationReport, data_suffix
from dmgal.recipes.run.cli_errors import parse_options, run_recipe, used_flags
from dmgal.recipes.run.config import DataOverrides
from dmgal.recipes.run.encoding import Keep, Kept, launched_processes
from dmgal.recipes.run.evaluation import (
    Protocol,
    check_exact,
    encode_with_text,
    evaluate_tasks,
    evaluation_data,
    exact_tasks,
    load_run,
    protocol_as_json,
    seen_in_training,
)
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.generalized import evaluate_generalized
from dmgal.recipes.run.shots import parse_shots, shot_curve
from dmgal.recipes.run.text import TextOptions


@dataclass(frozen=True)
class Evaluate:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, written by dmgal train."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    exact: bool = False
    """Compute the expected accuracy over all one-shot episodes in closed form, without sampling error. Requires a head
    that scores pairs of videos and no task layer."""
    states: Kept = "disk"
    """Storage of the encoded videos. disk: exact, in the run's folder. float16: half the size, but INEXACT: predictions
    may differ, and the results are marked. memory: not saved."""
    cache: Path | None = None
    """Folder for the encoded videos. None: RUN/states."""
    curve: tuple[str, ...] = ()
    """Numbers of shots to evaluate on the same queries. 0: class names alone. 1-5: different numbers for the classes of
    an episode. Episodes with more shots contain those with fewer."""
    generalized: bool = False
    """Put the novel classes of each episode beside all base classes: accuracy on queries of both kinds, and their
    harmonic mean."""
    out: Path | None = None
    """Another JSON file for the result."""
    text: TextOptions = field(default_factory=TextOptions)
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


def _check(options: Evaluate) -> None:
    protocol, use, is_curve = options.protocol, options.text.use, bool(options.curve)
    others: dict[str, object] = {"--exact": options.exact, "--until": protocol.until}
    if options.generalized and (flags := used_flags({**others, "--curve": is_curve, "--text.use": use != "no"})):
        raise DmgalError(
            "Novel classes beside base classes are evaluated on a number of episodes, by clips.",
            received=f"--generalized with {flags}",
            expected="--generalized with --shots, --ways, --queries and --episodes",
            remedy="Remove the other option.",
        )
    for shots in options.curve:
        parse_shots(shots)
    if is_curve and (flags := used_flags({**others, "--shots": protocol.k_shot, "--text.use only": use == "only"})):
        raise DmgalError(
            "A curve has its own numbers of shots.",
            received=f"--curve with {flags}",
            expected="--curve with --episodes, and --text.use fuse or none",
            remedy="Remove the other option. A curve with 0 includes class names alone.",
        )


def main(argv: list[str] | None = None) -> int | None:
    """Evaluate the run named on the command line."""
    options = parse_options(Evaluate, argv, "evaluate", __doc__)
    run, protocol, progress = Run(options.run), options.protocol, not options.quiet
    _check(options)
    trained, recognizer = load_run(run)
    if options.exact:
        check_exact(recognizer, options.data.over(trained), protocol)
    keep = Keep(options.states, options.cache or options.run / "states", launched_processes())
    is_helper = keep.processes.rank > 0  # of several processes, one reports
    recipe, catalog = evaluation_data(run, trained, options.data, protocol.split, progress and not is_helper)
    described = protocol_as_json(protocol, recipe, catalog)
    described["seen_classes"] = seen_in_training(run, trained, catalog, protocol.split)
    suffix = data_suffix(run, trained.data, recipe.data, described)
    report = EvaluationReport(
        run, protocol, described, options.text.use, suffix, options.out, is_inexact=options.states == "float16"
    )
    if options.curve:
        points = shot_curve(recognizer, recipe, catalog, protocol, options.curve, options.text, progress, keep)
        if not is_helper:
            report.curve(points)
        return 0
    if options.generalized:
        generalized = evaluate_generalized(recognizer, recipe, catalog, protocol, progress, keep)
        described["base_videos"] = "seen in training" if trained.train.steps else "not trained on"
        if not is_helper:
            replace(report, described=described).generalized(generalized)
        return 0
    recognizer, encoded, text = encode_with_text(recognizer, recipe, catalog, protocol, options.text, progress, keep)
    report = replace(report, described=described | {"text": text or described["text"]})
    progress = progress and not is_helper
    if not options.exact:
        evaluations = evaluate_tasks(recognizer, recipe, encoded, protocol, progress)
        if not is_helper:
            report.accuracies(evaluations)
    elif not is_helper:
        report.exact_accuracies(exact_tasks(recognizer, recipe, encoded, protocol, progress), encoded.catalog)
    return 0


if __name__ == "__main__":
    run_recipe(main)
