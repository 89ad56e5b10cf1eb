"""DMGAL-Adapter against other adapters on moving shapes: same head, same budget, parameters within 20 %, three seeds.

    python -m dmgal.bench.adapter_comparison --jobs 2

Learning rates are chosen on validation classes (see ``trainings``). Writes ``bench/results/adapter_comparison.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmgal.bench.trainings import Comparison, Rate, Workshop

OPTIONS: dict[str, tuple[str, ...]] = {
    "dmgal_adapter": (),
    "st_adapter": ("--adapter.bottleneck", "30"),
    "aim": ("--adapter.bottleneck", "10"),
    "d2st": ("--adapter.bottleneck", "16"),
    "lora": (),
    "bitfit": (),
}
"""Options by recipe that match the parameter count of DMGAL-Adapter. BitFit has fewer and cannot have more."""
RATES = tuple(Rate(rate) for rate in (2e-3, 4e-3, 8e-3, 1.6e-2))


@dataclass(frozen=True)
class AdapterComparison:
    """Options of the command."""

    work: Path = Path("adapter_comparison")
    """Folder for videos and runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the data, including the split into classes, and of the training."""
    episodes: int = 2000
    jobs: int = 1
    """Number of parallel trainings."""
    out: Path = Path(__file__).parent / "results" / "adapter_comparison.json"


def main(argv: list[str] | None = None) -> None:
    """Train, compare and write the report."""
    options = tyro.cli(AdapterComparison, args=argv, description=__doc__)
    comparison = Comparison(OPTIONS, dict.fromkeys(OPTIONS, RATES))
    report = comparison.run(Workshop(options.work, options.jobs), options.seeds, options.episodes)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
