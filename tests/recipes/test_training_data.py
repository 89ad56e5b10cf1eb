"""Options passed to torch's data loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.training import tasks
from dmgal.videos import VideoCatalog


@pytest.mark.parametrize("pinned", [False, True])
def test_pin_memory_is_passed_to_loader(frame_folders: Path, monkeypatch, pinned: bool) -> None:
    given: dict[str, Any] = {}

    def loader(*arguments: Any, **options: Any) -> DataLoader[Any]:
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
