"""Options passed to torch's data loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch.utils.data import DataLoader

from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.training import checks, tasks
from dmgal.videos import VideoCatalog


@pytest.mark.parametrize("pinned", [False, True])
def test_pin_memory_is_passed_to_loader(frame_folders: Path, monkeypatch, pinned: bool) -> None:
    given: dict[str, object] = {}

    def loader(*arguments, **options) -> DataLoader:
        given.update(options)
        return DataLoader(*arguments, **{**options, "pin_memory": False})  # a machine without a GPU has no such memory

    monkeypatch.setattr(tasks, "Loader", loader)
    recipe = Recipe(
        data=DataConfig(num_workers=0), episode=EpisodeConfig(n_way=2, n_query=1), train=TrainConfig(steps=2)
    )
    catalog = VideoCatalog.from_folders(frame_folders).split("train")
    steps = tasks.TrainingData(recipe, catalog, 32).steps(0, rank=0, world=1, pin_memory=pinned)
    assert given["pin_memory"] is pinned
    assert len(list(steps)) == 2


def test_every_second_task_is_one_of_motion_world(frame_folders: Path, monkeypatch) -> None:
    asked: list[DataConfig] = []

    def listed(data: DataConfig) -> VideoCatalog:
        asked.append(data)
        catalog = VideoCatalog.from_folders(frame_folders)
        return replace(catalog, class_names=tuple(f"generated {name}" for name in catalog.class_names))

    monkeypatch.setattr(tasks, "list_catalog", listed)
    data = DataConfig(num_workers=0, flip=True, motion_world=Path("world"), crop_scale=(0.5, 1.0))
    recipe = Recipe(data=data, episode=EpisodeConfig(n_way=2, n_query=1), train=TrainConfig(steps=2, tasks_per_step=2))
    drawn = tasks.TrainingData(recipe, VideoCatalog.from_folders(frame_folders).split("train"), 32)
    for episodes in drawn.steps(0, rank=0, world=1, pin_memory=False):
        assert [episode.class_names[0].startswith("generated ") for episode in episodes] == [False, True]
    assert (asked[0].generate, asked[0].root, asked[0].flip) == ("motion_world", Path("world"), False)
    assert asked[0].crop_scale == (0.5, 1.0)


@pytest.mark.parametrize("head", [{"name": "Hyrsm", "num_base_classes": 3}, {"name": "ClipFsar"}])
def test_motion_world_is_refused_beside_heads_that_know_the_base_classes(head: dict[str, object]) -> None:
    recipe = Recipe(data=DataConfig(motion_world=Path("world")), head=head, train=TrainConfig(steps=1))
    recognizer = SimpleNamespace(head=SimpleNamespace(learns_text=head["name"] == "ClipFsar"))
    with pytest.raises(DmgalError, match=r"data\.motion_world"):
        checks._check_other_classes(recipe, cast(FewShotRecognizer, recognizer))
