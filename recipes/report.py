"""Report of one or several runs as a web page: one file that loads nothing and can be sent to others.

    dmgal report runs/mine
    dmgal report runs/frozen runs/mine --out report.html --episodes 2000

The page shows accuracies with intervals, the paired comparison with the first run, training curves, the hardest
episodes as short films with the answers of each run, confusions, where the last run looks, costs and all settings. Runs
are evaluated on the same episodes. It contains small pictures of the videos, but no paths of this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.files import printable, write_text
from dmgal.recipes.reports.run_report import run_report
from dmgal.recipes.reports.runs import compare_in_depth
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.config import DataOverrides
from dmgal.recipes.run.encoding import Kept
from dmgal.recipes.run.evaluation import Protocol
from dmgal.recipes.run.ranges import Range


@dataclass(frozen=True)
class Report:
    """Options of the command."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs. The others are compared with the first."""
    out: Path = Path("report.html")
    """HTML file to write."""
    protocol: tyro.conf.OmitArgPrefixes[Protocol] = field(default_factory=Protocol)
    hardest: Annotated[int, Range(0, 20)] = 3
    """Number of hardest episodes to show."""
    states: Kept = "disk"
    """Storage of the encoded videos, see dmgal evaluate. float16 is INEXACT."""
    cache: Path | None = None
    """Folder for the encoded videos, see dmgal compare. None: RUN/states."""
    data: DataOverrides = field(default_factory=DataOverrides)
    quiet: bool = False
    """Hide progress bars."""


def run(options: Report) -> Path | None:
    """Evaluate the runs and write the page. Return its path, or None on all ranks but 0.

    Raises:
        DmgalError: a run cannot be used, or the page cannot be written.
    """
    if not options.runs:
        raise DmgalError(
            "No runs to report.", received="no run", expected="folders of runs", remedy="Run dmgal report RUN [RUN ...]"
        )
    found = compare_in_depth(
        options.runs, options.protocol, not options.quiet, options.states, 5, options.data, options.cache
    )
    if found is None:
        return None
    page = run_report(found, options.runs, options.protocol, options.hardest, options.states == "float16")
    write_text(options.out, page, parents=True)
    return options.out


def main(argv: list[str] | None = None) -> int | None:
    """Report the runs named on the command line."""
    written = run(parse_options(Report, argv, "report", __doc__))
    if written is not None:
        print(f"written: {printable(str(written))}")
    return 0


if __name__ == "__main__":
    run_recipe(main)
