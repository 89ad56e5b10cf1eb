"""Comparison of runs on the same episodes, with paired differences.

    dmgal compare runs/frozen runs/smga runs/dmgal_adapter --shots 1
    dmgal compare runs/frozen runs/smga --targets data/one data/other --out matrix.json
    dmgal compare runs/one_seed0 runs/one_seed1 runs/one_seed2 runs/other_seed0 runs/other_seed1 runs/other_seed2

The difference to the first run is paired episode by episode on the same videos. Its interval is therefore much
narrower than those of the two accuracies. It holds for these trained models and these classes. Runs whose recipes
differ only in train.seed form one method. Each method is compared with the first: spread over seeds, bootstrap over
classes, classes that gained and lost most, and episodes with the largest disagreement. The full tables are written to
the JSON file of --out and the web page of --page. With --targets, the runs are compared on each of several data sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.files import write_text
from dmgal.recipes.reports.comparison import methods_as_text
from dmgal.recipes.reports.evaluation import INEXACT
from dmgal.recipes.reports.page import comparison_page
from dmgal.recipes.reports.runs import (
    Comparison,
    as_text,
    compare_in_depth,
    comparison_as_json,
    matrix_as_text,
    names_of,
)
from dmgal.recipes.run.cli_errors import parse_options, run_recipe, used_flags
from dmgal.recipes.run.config import DataOverrides, TargetData
from dmgal.recipes.run.encoding import Kept
from dmgal.recipes.run.evaluation import Protocol
from dmgal.recipes.run.folder import environment, json_text
from dmgal.recipes.run.ranges import TASKS, Range
from dmgal.recipes.run.text import TextOptions, text_line


@dataclass(frozen=True)
class Compare:
    """Options of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs. The others are compared with the first."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    out: Path | None = None
    """JSON file for the results."""
    page: Path | None = None
    """HTML file for the results, with all per-class and confusion tables."""
    states: Kept = "disk"
    """Storage of the encoded videos, see dmgal evaluate. float16 is INEXACT."""
    cache: Path | None = None
    """Folder for the encoded videos, with a subfolder per run by its full path. None: RUN/states."""
    disagreements: Annotated[int, Range(0, TASKS)] = 5
    """Number of episodes to list in which two methods disagree most."""
    probe: bool = True
    """Also show a ridge probe on the mean frames of each run's encoder. It encodes each video a second time."""
    text: TextOptions = field(default_factory=TextOptions)
    targets: tuple[Path, ...] = ()
    """Folders of other data, with a split.csv or with class folders. The runs are compared on the same episodes of
    each."""
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


def _check(options: Compare) -> None:
    others = {"--page": options.page, "--data.root": options.data.root, "--data.split-file": options.data.split_file}
    if options.targets and (flags := used_flags(others)):
        raise DmgalError(
            "Each target has its own data.",
            received=f"--targets with {flags}",
            expected="--targets with --out, or one other data set",
            remedy="Remove the other option.",
        )


def _compare_on_targets(options: Compare) -> int:
    """Compare the runs on each of the targets, and print and write one matrix."""
    by_target: dict[str, Comparison] = {}
    for name, root in names_of(options.targets).items():
        found = _compared(options, TargetData(**{**vars(options.data), "root": root}))
        if found is not None:
            by_target[name] = found
    if not by_target:  # a process that only helps
        return 0
    if options.out:
        numbers = {
            name: comparison_as_json(found, options.protocol, options.states == "float16")
            for name, found in by_target.items()
        }
        write_text(options.out, json_text({"targets": numbers, "environment": environment()}), parents=True)
    print(matrix_as_text(by_target))
    if options.states == "float16":
        print(INEXACT)
    return 0


def _compared(options: Compare, data: DataOverrides) -> Comparison | None:
    progress = not options.quiet
    probe = options.probe and not options.targets  # the matrix of targets does not show it
    settings = options.states, options.disagreements, data, options.cache, probe, options.text
    return compare_in_depth(options.runs, options.protocol, progress, *settings)


def main(argv: list[str] | None = None) -> int | None:
    """Compare the runs named on the command line."""
    options = parse_options(Compare, argv, "compare", __doc__)
    if not options.runs:
        raise DmgalError(
            "No runs to compare.", received="no run", expected="folders of runs", remedy="Run dmgal compare RUN RUN ..."
        )
    _check(options)
    if options.targets:
        return _compare_on_targets(options)
    found = _compared(options, options.data)
    if found is None:
        return 0
    numbers = comparison_as_json(found, options.protocol, options.states == "float16")
    if options.out:  # before printing, so that a closed pipe does not lose the results
        write_text(options.out, json_text({**numbers, "environment": environment()}), parents=True)
    if options.page:
        page = comparison_page(found, options.protocol, is_inexact=options.states == "float16")
        write_text(options.page, page, parents=True)
    if found.rows[0].text is not None:
        print(f"text: {text_line(found.rows[0].text)}")
    print(as_text(found.rows))
    print(methods_as_text(found.methods, found.pairings, found.catalog))
    if options.states == "float16":
        print(INEXACT)
    return 0


if __name__ == "__main__":
    run_recipe(main)
