"""Cost of the harness of ``dmgal bench``: a training whose memory is sampled, against the same training alone.

    python -m dmgal.bench.harness

Everything else that a cell measures comes before or after its training. Both trainings are in one process, next to each
other and in changing order. Writes ``bench/results/harness.json``: extra CPU time in percent, with its 95 % interval.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from dmgal.bench.matrix.measurements import MemorySamples
from dmgal.bench.measuring import conditions, extra_percent, paired_seconds, write_report
from dmgal.recipes.run.config import parse
from dmgal.recipes.train import Train, run


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    videos: str = "data/moving_shapes"
    """Folder of moving shapes, drawn if it is not there yet."""
    steps: int = 100
    """Training steps."""
    rounds: int = 10
    """Pairs of trainings."""
    out: Path = Path(__file__).parent / "results" / "harness.json"


def main() -> None:
    """Measure the trainings and write the report."""
    options = tyro.cli(Options, description=__doc__)
    words = ["demo", "method/dmgal_adapter", "data/moving_shapes", "--data.root", options.videos]
    words += ["--train.steps", str(options.steps), "--train.validation-episodes", "20"]
    recipe = parse(words, prog="harness", description="", wrapper=Train)[0].recipe
    with tempfile.TemporaryDirectory() as folder:
        places = (Path(folder, str(number)) for number in itertools.count())

        def alone() -> None:
            run(recipe, next(places), quiet=True)

        def sampled() -> None:
            with MemorySamples():
                alone()

        pairs = paired_seconds(alone, {"sampled": sampled}, options.rounds)["sampled"]
    write_report({**conditions(options), "extra_percent": extra_percent(pairs)}, options.out)


if __name__ == "__main__":
    main()
