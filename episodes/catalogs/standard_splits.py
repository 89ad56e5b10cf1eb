"""The five standard few-shot splits, bundled: classes and videos for training, validation and test.

They are the lists that the field's released code uses. Videos per split agree with the papers except for SSv2-Full:
OTAM (arXiv 1906.11415) states 77,500, 1,925 and 2,854, but the released list has 67,013, 1,926 and 2,857. That list
does not name its validation classes, which are ``val0`` to ``val11`` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

StandardSplit = Literal["ssv2_small", "ssv2_full", "kinetics100", "hmdb51", "ucf101"]
STANDARD_SPLITS: tuple[str, ...] = get_args(StandardSplit)


@dataclass(frozen=True)
class SplitFacts:
    """The source of a split and its numbers of classes and videos in train, val and test.

    Attributes:
        source: the paper, and the data set if the paper has several.
        classes: number of classes in train, val and test.
        videos: number of videos in train, val and test.
        mirror: True if a mirrored clip keeps its label.
    """

    source: str
    classes: tuple[int, int, int]
    videos: tuple[int, int, int]
    mirror: bool


FACTS: dict[str, SplitFacts] = {
    "ssv2_small": SplitFacts("CMN, ECCV 2018, on Something-Something V2", (64, 12, 24), (6400, 1200, 2400), False),
    "ssv2_full": SplitFacts("OTAM, CVPR 2020, on Something-Something V2", (64, 12, 24), (67013, 1926, 2857), False),
    "kinetics100": SplitFacts("CMN, ECCV 2018, on Kinetics-400", (64, 12, 24), (6400, 1200, 2400), True),
    "hmdb51": SplitFacts("ARN, ECCV 2020", (31, 10, 10), (4280, 1194, 1292), True),
    "ucf101": SplitFacts("ARN, ECCV 2020", (70, 10, 21), (9154, 1421, 2745), True),
}


def standard_split_file(name: str) -> Path:
    """Return the bundled split file of a standard split. It lists names of videos, which may be anywhere on disk."""
    return Path(str(files(__package__) / "splits" / f"{name}.csv.gz"))
