"""Demo over several data seeds, and a verdict on each of its claims.

    python -m dmgal.bench.demo_report --seeds 0 1 2

Every choice was made on the validation classes of data seed 0; the videos of the other seeds, the split into classes
included, are generated for the first time here. Writes ``bench/results/demo.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class DemoReport:
    """Options of the command."""

    seeds: tuple[int, ...] = (0, 1, 2)
    work: Path = Path("demo_report")
    """Folder in which the demos run."""
    out: Path = Path(__file__).parent / "results" / "demo.json"


def one_demo(seed: int, folder: Path) -> dict[str, Any]:
    """Run ``dmgal demo`` as a user would and return its numbers."""
    command = [sys.executable, "-m", "dmgal", "demo", "--out", str(folder), "--seed", str(seed), "--quiet"]
    subprocess.run(command, check=True)
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


def summary(demos: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and range over data seeds of every table entry, by method."""
    result: dict[str, Any] = {}
    for place, row in enumerate(demos[0]["rows"]):
        rows = [demo["rows"][place] for demo in demos]
        result[row["run"]] = {
            "accuracy": _mean_and_range([r["results"]["accuracy"]["percent"] for r in rows]),
            "difference_to_frozen": _mean_and_range([r["difference_to_first"]["points"] for r in rows]),
            "lowest_end_of_difference_interval": min(
                r["difference_to_first"]["points"] - r["difference_to_first"]["half_width"] for r in rows
            ),
            "reversal_two_way": _mean_and_range([r["results"]["reversal_two_way"]["percent"] for r in rows]),
            "reversal_four_way": _mean_and_range([r["results"]["reversal_four_way"]["percent"] for r in rows]),
            "share_of_visual_tower_percent": round(100 * row["trained_parameters"] / row["visual_tower_parameters"], 2),
        }
    return result


def _mean_and_range(values: list[float]) -> dict[str, float]:
    return {"mean": round(sum(values) / len(values), 2), "lowest": min(values), "highest": max(values)}


def main(argv: list[str] | None = None) -> None:
    """Run the demos in sequence and write the report."""
    options = tyro.cli(DemoReport, args=argv, description=__doc__)
    demos = [one_demo(seed, options.work / f"seed{seed}") for seed in options.seeds]
    report = {"seeds": list(options.seeds), "summary": summary(demos), "demos": demos}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":
    main()
