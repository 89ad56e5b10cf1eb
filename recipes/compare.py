"""Comparison of runs on the same episodes, with paired differences.

    dmgal compare runs/frozen runs/smga runs/dmgal_adapter --shots 1
    dmgal compare runs/one_seed0 runs/one_seed1 runs/one_seed2 runs/other_seed0 runs/other_seed1 runs/other_seed2

The difference to the first run is paired episode by episode on the same videos. Its interval is therefore much
narrower than those of the two accuracies. It holds for these trained models and these classes. Runs whose recipes
differ only in train.seed form one method. Each method is compared with the first: spread over seeds, bootstrap over
classes, classes that gained and lost most, and episodes with the largest disagreement. The full tables are written to
the JSON file of --out and the web page of --page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from dmgal.errors import DmgalError
from dmgal.files import write_text
from dmgal.recipes.reports.comparison import methods_as_json, methods_as_text
from dmgal.recipes.reports.page import comparison_page
from dmgal.recipes.reports.runs import Comparison, as_text, compare_in_depth, rows_as_json
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.config import DataOverrides
from dmgal.recipes.run.encoding import Kept
from dmgal.recipes.run.evaluation import Protocol, protocol_as_json, samplers
from dmgal.recipes.run.folder import environment, json_text
from dmgal.recipes.run.ranges import TASKS, Range


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
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


def _page(found: Comparison, options: Compare) -> str:
    protocol, episode = options.protocol, found.recipe.episode
    ways, shots = protocol.n_way or episode.n_way, protocol.k_shot or episode.k_shot
    episodes = len(found.rows[0].evaluations["accuracy"].accuracies)
    summary = f"{ways}-way {shots}-shot accuracy on {protocol.split} classes, {episodes:,} episodes, the same for all."
    summary += " INEXACT: states were stored as float16." if options.states == "float16" else ""
    return comparison_page(found.rows, found.methods, found.pairings, found.catalog, summary)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def main(argv: list[str] | None = None) -> int | None:
    """Compare the runs named on the command line."""
    options = parse_options(Compare, argv, "compare", __doc__)
    if not options.runs:
        raise DmgalError(
            "No runs to compare.", received="no run", expected="folders of runs", remedy="Run dmgal compare RUN RUN ..."
        )
    protocol, progress = options.protocol, not options.quiet
    found = compare_in_depth(
        options.runs,
        protocol,
        progress,
        options.states,
        options.disagreements,
        options.data,
        options.cache,
        options.probe,
    )
    if found is None:
        return 0
    sampler = samplers(found.catalog, found.recipe, protocol)["accuracy"]
    numbers: dict[str, Any] = {"protocol": protocol_as_json(protocol, found.recipe, found.catalog)}
    numbers["rows"] = rows_as_json(found.rows)
    numbers |= methods_as_json(found.methods, found.pairings, found.catalog, sampler)
    if options.states == "float16":
        numbers["inexact"] = "states were kept as float16"
    if options.out:  # before printing, so that a closed pipe does not lose the results
        _write(options.out, json_text({**numbers, "environment": environment()}))
    if options.page:
        _write(options.page, _page(found, options))
    print(as_text(found.rows))
    print(methods_as_text(found.methods, found.pairings, found.catalog))
    if options.states == "float16":
        print("INEXACT: states were stored as float16. Predictions may differ from those of exact states.")
    return 0


if __name__ == "__main__":
    run_recipe(main)
