"""The five bundled splits have the classes and videos that the literature states."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmgal.videos.catalog.lists import FACTS, SPLITS, STANDARD_SPLITS, read_rows, standard_split_file

VIDEOS_PER_CLASS = {
    "ssv2_small": (100, 100),
    "ssv2_full": (17, 3170),
    "kinetics100": (100, 100),
    "hmdb51": (102, 548),
    "ucf101": (100, 167),
}


def test_five_splits_are_bundled():
    assert set(STANDARD_SPLITS) == set(FACTS) == set(VIDEOS_PER_CLASS)
    assert {f"{name}.csv.gz" for name in STANDARD_SPLITS} == {
        path.name for path in Path(standard_split_file("ucf101")).parent.iterdir()
    }


@pytest.mark.parametrize("name", STANDARD_SPLITS)
def test_numbers_of_classes_and_videos(name):
    rows = list(read_rows(standard_split_file(name)))
    videos = Counter(split for split, *_ in rows)
    assert tuple(videos[split] for split in SPLITS) == FACTS[name].videos
    classes = {(split, class_name) for split, class_name, *_ in rows}
    assert tuple(sum(of == split for of, _ in classes) for split in SPLITS) == FACTS[name].classes
    assert len({class_name for _, class_name in classes}) == len(classes), "a class belongs to one split"
    assert len({video for _, _, video, _ in rows}) == len(rows), "a video is listed once"
    per_class = Counter(class_name for _, class_name, *_ in rows)
    assert (min(per_class.values()), max(per_class.values())) == VIDEOS_PER_CLASS[name]


def test_only_something_something_forbids_mirroring():
    assert {name for name, facts in FACTS.items() if not facts.mirror} == {"ssv2_small", "ssv2_full"}
