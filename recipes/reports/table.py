"""Text table of a comparison, one row per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dmgal.episodes.evaluation import Estimate, Evaluation


@dataclass(frozen=True)
class Row:
    """One method of a comparison."""

    name: str
    evaluations: Mapping[str, Evaluation]
    difference: Estimate
    """Difference of the accuracy to the first row, in points."""
    trained_parameters: int
    tower_parameters: int
    saved_bytes: int
    cost: Mapping[str, float | None] = field(default_factory=dict)
    """``seconds_per_step`` and ``peak_memory_mb`` of the training, if logged."""

    @property
    def share(self) -> float:
        """Trained parameters in percent of the visual tower's."""
        return 100 * self.trained_parameters / self.tower_parameters


HEADINGS = (
    "method",
    "accuracy %",
    "difference",
    "reversal %",
    "4-way rev. %",
    "trained",
    "of tower",
    "peak MB",
    "s/step",
    "saved",
)


def cells(row: Row, is_first: bool) -> list[str]:
    """Return the row's texts in the order of ``HEADINGS``."""

    def accuracy(name: str) -> str:
        return str(row.evaluations[name].accuracy) if name in row.evaluations else "-"

    seconds, memory = row.cost.get("seconds_per_step"), row.cost.get("peak_memory_mb")
    return [
        row.name,
        accuracy("accuracy"),
        "-" if is_first else f"{row.difference.mean:+.1f} ± {row.difference.half_width:.1f}",
        accuracy("reversal_two_way"),
        accuracy("reversal_four_way"),
        f"{row.trained_parameters:,}",
        f"{row.share:.1f} %",
        f"{memory:.0f}" if memory else "-",
        f"{seconds:.3f}" if seconds else "-",
        f"{row.saved_bytes / 1024:.0f} KB" if row.saved_bytes else "-",
    ]


def as_text(rows: Sequence[Row]) -> str:
    """Return aligned columns with headings. Accuracies have 95 % intervals over episodes."""
    lines = [list(HEADINGS), *(cells(row, index == 0) for index, row in enumerate(rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    padded = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([padded[0], "-" * len(padded[0]), *padded[1:]])
