"""All methods on moving shapes under one budget: trained with one shot, tested with one and five shots.

    python -m dmgal.bench.method_comparison --jobs 2

Methods that train the backbone do so from tiny-clip. Each method's pair of learning rates is chosen on validation
classes (see ``trainings``). Writes ``bench/results/method_comparison.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmgal.bench.trainings import Comparison, Rate, Workshop

ADAPTERS = ("dmgal_adapter",)
FULLY_TRAINED = (
    "dmgal_ft", "m2acl", "sact", "molo", "trx", "strm", "hyrsm", "otam", "bi_mhm", "frame_aligned", "prototype",
)  # fmt: skip
STUCK = ("sact", "prototype")
RATES = {
    **dict.fromkeys(ADAPTERS, (Rate(4e-3),)),  # chosen by bench/adapter_comparison.py in the same way
    **dict.fromkeys(FULLY_TRAINED, (Rate(1e-3, 5e-4), Rate(3e-3, 5e-4))),
    # below 40 % on validation classes with these two rates, so smaller rates are tried as well
    **dict.fromkeys(STUCK, (Rate(1e-3, 5e-4), Rate(3e-3, 5e-4), Rate(3e-4, 1e-4), Rate(1e-4, 1e-4))),
}


@dataclass(frozen=True)
class MethodComparison:
    """Options of the command."""

    work: Path = Path("method_comparison")
    """Folder for videos and runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the data, including the split into classes, and of the training."""
    episodes: int = 2000
    jobs: int = 1
    """Number of parallel trainings."""
    out: Path = Path(__file__).parent / "results" / "method_comparison.json"


def main(argv: list[str] | None = None) -> None:
    """Train, compare and write the report."""
    options = tyro.cli(MethodComparison, args=argv, description=__doc__)
    comparison = Comparison(dict.fromkeys(RATES, ("--queries", "2")), RATES, tried_again=1)
    report = comparison.run(Workshop(options.work, options.jobs), options.seeds, options.episodes, shots=(1, 5))
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
