"""The answer for one clip by the names of its classes: as an object, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dmgal.episodes.gallery.recognition import Recognition
from dmgal.files import printable
from dmgal.recipes.run.clips import Label

UNKNOWN = "(unknown)"
CLASSES_SHOWN = 5


@dataclass(frozen=True)
class ClassScore:
    """The score of one class. ``logit`` is None for a class that is not on the shortlist."""

    probability: float
    logit: float | None


@dataclass(frozen=True)
class RecognizedAction:
    """The answer for one clip. ``str`` of it is the text that ``dmgal recognize`` prints.

    Attributes:
        recognized: the class, or None if the action is unknown.
        best: the class with the highest logit, also of an unknown action.
        probability: calibrated confidence that the best class is right, if the action is one of the classes.
        logit: of the best class.
        score: how known the action is. It is unknown if this is below the gallery's threshold.
        margin: the best logit minus the second best. None if there is only one class.
        scores: probability and logit by class, in the order of enrollment.
    """

    recognized: Label | None
    best: Label
    probability: float
    logit: float
    score: float
    margin: float | None
    scores: dict[Label, ClassScore]

    @classmethod
    def by_name(cls, clip: Recognition, names: Sequence[Label]) -> RecognizedAction:
        """Return the answer with the names of the classes."""
        scores = zip(names, clip.probabilities.tolist(), clip.logits.tolist(), strict=True)
        return cls(
            recognized=names[clip.label] if clip.known else None,
            best=names[clip.label],
            probability=clip.probabilities.max().item(),
            logit=clip.logits.max().item(),
            score=clip.score,
            margin=clip.margin,
            scores={
                name: ClassScore(probability, logit if math.isfinite(logit) else None)
                for name, probability, logit in scores
            },
        )

    @property
    def title(self) -> str:
        """The recognized class, or ``(unknown)``."""
        return UNKNOWN if self.recognized is None else printable(str(self.recognized))

    def text(self, top: int = CLASSES_SHOWN) -> str:
        """Return the answer and the ``top`` best classes, one per line."""
        logits = [(score.logit, name) for name, score in self.scores.items() if score.logit is not None]
        ranked = [name for _, name in sorted(logits, key=lambda pair: -pair[0])]
        rows = [("class", "score %", "logit")]
        for name in ranked[: max(1, top)]:
            score = self.scores[name]
            rows.append((printable(str(name)), f"{100 * score.probability:.1f}", f"{score.logit:.2f}"))
        lines = [self.title, *table(rows, left={0})]
        if len(ranked) > max(1, top):
            lines.append(f"  and {len(ranked) - max(1, top)} more classes")
        if self.margin is not None:
            lines.append(f"margin: {self.margin:.2f}")
        if self.recognized is None:  # its logit may be above the threshold, which is not always one of logits
            lines.append(f"score: {self.score:.2f}, below the threshold")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def as_json(self) -> dict[str, object]:
        """Return all attributes as plain values."""
        return asdict(self)


def table(rows: Sequence[tuple[str, ...]], left: set[int]) -> list[str]:
    """Return the lines of a table. Columns are aligned right, except those in ``left``."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines
