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

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from dmgal.errors import DmgalError
from dmgal.files import printable, write_text
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.config import DataConfig, DataOverrides
from dmgal.recipes.run.encoding import Keep, Kept, launched_processes
from dmgal.recipes.run.evaluation import (
    Protocol,
    as_json,
    check_exact,
    encode_with_text,
    evaluate_tasks,
    evaluation_data,
    exact_as_json,
    exact_tasks,
    load_run,
    protocol_as_json,
    seen_in_training,
)
from dmgal.recipes.run.folder import Run, environment, json_text
from dmgal.recipes.run.generalized import Generalized, evaluate_generalized
from dmgal.recipes.run.shots import Point, curve_as_json, curve_as_text, parse_shots, shot_curve
from dmgal.recipes.run.text import TextOptions, text_line

INEXACT = "  INEXACT: states were stored as float16. Predictions may differ from those of exact states."


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


def main(argv: list[str] | None = None) -> int | None:
    """Evaluate the run named on the command line."""
    options = parse_options(Evaluate, argv, "evaluate", __doc__)
    run, protocol, progress = Run(options.run), options.protocol, not options.quiet
    _check(options)
    trained, recognizer = load_run(run)
    if options.exact:
        check_exact(recognizer, options.data.over(trained), protocol)
    keep = Keep(options.states, options.cache or options.run / "states", launched_processes())
    is_shown = progress and not keep.processes.rank
    recipe, catalog = evaluation_data(run, trained, options.data, protocol.split, is_shown)
    described = protocol_as_json(protocol, recipe, catalog)
    described["seen_classes"] = seen_in_training(run, trained, catalog, protocol.split)
    suffix = _data_suffix(run, trained.data, recipe.data, described)
    is_helper = keep.processes.rank > 0
    if options.curve:
        points = shot_curve(recognizer, recipe, catalog, protocol, options.curve, options.text, progress, keep)
        if not is_helper:
            _report_curve(options, described, points, run, suffix)
        return 0
    if options.generalized:
        generalized = evaluate_generalized(recognizer, recipe, catalog, protocol, progress, keep)
        if not is_helper:
            described["base_videos"] = "seen in training" if trained.train.steps else "not trained on"
            _report_generalized(options, described, generalized, run, suffix)
        return 0
    recognizer, encoded, text = encode_with_text(recognizer, recipe, catalog, protocol, options.text, progress, keep)
    described["text"] = text or described["text"]
    progress = progress and not is_helper
    if options.exact:
        if is_helper:
            return 0
        exact = exact_tasks(recognizer, recipe, encoded, protocol, progress)
        results, lines = exact_as_json(exact, encoded.catalog), {name: f"{a.mean:.3f}" for name, a in exact.items()}
    else:
        evaluations = evaluate_tasks(recognizer, recipe, encoded, protocol, progress)
        if is_helper:
            return 0
        results, lines = as_json(evaluations), {name: str(e.accuracy) for name, e in evaluations.items()}
    _report(options, described, results, lines, run, suffix)
    return 0


def _data_suffix(run: Run, own: DataConfig, data: DataConfig, protocol: Mapping[str, Any]) -> str:
    """Return the end of a result's name that names other data than the run's own, wherever its own are now."""
    fingerprint = protocol["data"]["fingerprint"]
    if data.location == own.location or run.has_data(protocol["split"], fingerprint):
        return ""
    name = re.sub(r"[^\w.-]+", "-", data.location[0].name)[:40]
    return f"_{name}_{fingerprint}"


def _report(
    options: Evaluate,
    described: Mapping[str, Any],
    results: Mapping[str, Any],
    lines: Mapping[str, str],
    run: Run,
    suffix: str,
) -> None:
    """Print the results and write them to the run folder."""
    protocol, ways, shots = options.protocol, described["n_way"], described["k_shot"]
    extent = "all episodes, exact" if options.exact else f"{protocol.episodes} episodes, 95 % intervals over them"
    if protocol.until is not None and not options.exact:
        extent = f"until ± {protocol.until:g}, 95 % intervals over the episodes"
    print(f"{printable(str(options.run))}: {protocol.split} classes, {shots}-shot, {extent}")
    if described["text"] is not None:
        print(f"  text: {text_line(described['text'])}")
    for name, text in lines.items():
        label = f"{ways}-way accuracy" if name == "accuracy" else name.replace("_", " ")
        number = results[name]["episodes"]
        print(f"  {label:<20} {text} %{f'  ({number} episodes)' if protocol.until and not options.exact else ''}")
    result: dict[str, Any] = {"protocol": described, "results": results, "environment": environment()}
    amount = "all" if options.exact else f"{protocol.episodes}"
    if protocol.until is not None and not options.exact:
        amount = f"until{protocol.until:g}_at_least_{protocol.episodes}"
    suffix = f"_grouped{suffix}" if "group" in described["data"] else suffix
    suffix = _with_precision(options, result, suffix)
    _write(options, result, run, f"{protocol.split}_{ways}way_{shots}shot", f"{amount}episodes", suffix)


def _report_generalized(
    options: Evaluate, described: Mapping[str, Any], generalized: Generalized, run: Run, suffix: str
) -> None:
    """Print the accuracies on base and novel queries and their harmonic mean, and write them to the run folder."""
    protocol, ways, shots = options.protocol, described["n_way"], described["k_shot"]
    print(
        f"{printable(str(options.run))}: {ways} {protocol.split} classes beside {generalized.num_base} base classes, "
        f"{shots}-shot, {protocol.episodes} episodes, 95 % intervals over them"
    )
    for name, text in generalized.lines().items():
        print(f"  {name:<20} {text} %")
    if described["base_videos"] == "seen in training":
        print("  The base queries are videos that the run was trained on.")
    result: dict[str, Any] = {
        "protocol": dict(described),
        "generalized": generalized.as_json(),
        "environment": environment(),
    }
    suffix = _with_precision(options, result, suffix)
    _write(
        options,
        result,
        run,
        f"{protocol.split}_{ways}way_{shots}shot_generalized",
        f"{protocol.episodes}episodes",
        suffix,
    )


def _with_precision(options: Evaluate, result: dict[str, Any], suffix: str) -> str:
    """Return the end of a result's name, and mark the result, if states were stored in fewer bits."""
    if options.states != "float16":
        return suffix
    print(INEXACT)
    result["inexact"] = "states were kept as float16"
    return f"_float16{suffix}"


def _report_curve(
    options: Evaluate, described: Mapping[str, Any], points: Sequence[Point], run: Run, suffix: str
) -> None:
    """Print the accuracy by the number of shots, and write it to the run folder."""
    protocol, ways = options.protocol, described["n_way"]
    print(f"{printable(str(options.run))}: {protocol.split} classes, {ways}-way, {protocol.episodes} episodes")
    print(curve_as_text(points))
    result: dict[str, Any] = {"protocol": dict(described), "curve": curve_as_json(points), "environment": environment()}
    del result["protocol"]["k_shot"]
    shots = "_".join(point.name for point in points)
    suffix = _with_precision(options, result, suffix)
    _write(options, result, run, f"{protocol.split}_{ways}way_curve_{shots}", f"{protocol.episodes}episodes", suffix)


def _write(options: Evaluate, result: Mapping[str, Any], run: Run, start: str, amount: str, suffix: str) -> None:
    """Write a result to the run folder, and to the file of --out."""
    protocol, use = options.protocol, options.text.use
    if options.out is not None:  # first, because the run may be on a disk that is not writable
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json_text(result))
    text = f"_text_{use}" if use != "no" else ""
    path = run.write_result(f"{start}_{protocol.n_query}query_{amount}_seed{protocol.seed}{text}{suffix}", result)
    print(f"written: {printable(str(options.out or path))}")


def _check(options: Evaluate) -> None:
    protocol, is_curve = options.protocol, bool(options.curve)
    if options.generalized and (options.exact or is_curve or protocol.until is not None or options.text.use != "no"):
        raise DmgalError(
            "Novel classes beside base classes are evaluated on a number of episodes, by clips.",
            received="--generalized with --exact, --curve, --until or --text.use",
            expected="--generalized with --shots, --ways, --queries and --episodes",
            remedy="Remove the other option.",
        )
    for shots in options.curve:
        parse_shots(shots)
    if is_curve and (options.exact or protocol.until is not None or protocol.k_shot or options.text.use == "only"):
        raise DmgalError(
            "A curve has its own numbers of shots.",
            received="--curve with --exact, --until, --shots or --text.use only",
            expected="--curve with --episodes, and --text.use fuse or none",
            remedy="Remove the other option. A curve with 0 includes class names alone.",
        )


if __name__ == "__main__":
    run_recipe(main)
