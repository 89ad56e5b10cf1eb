"""JSON lines, trackers through Accelerate, and console output."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from trainings import log

from dmgal import progress
from dmgal.cli import main
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.run.folder import Run
from dmgal.recipes.train import run
from dmgal.recipes.training.launching import make_accelerator
from dmgal.recipes.training.tracking import PACKAGES, Tracking
from dmgal.videos import VideoCatalog

RECIPE = Recipe(
    data=DataConfig(num_workers=0, keep_in_memory=True),
    adapter={"peft_type": "DMGAL"},
    head={"name": "HyRSM", "num_base_classes": 6},
    episode=EpisodeConfig(n_way=2, n_query=1),
    train=TrainConfig(steps=4, validate_every=1, validation_episodes=2, patience=2),
)


class Notebook(GeneralTracker):
    """User-defined tracker, as documented by Accelerate."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.entries = {}, []

    @property
    def tracker(self):
        return self.entries

    @on_main_process
    def store_init_configuration(self, values):
        self.config = values

    @on_main_process
    def log(self, values, step=None, **options):
        self.entries.append((step, values))


def test_tracker_and_console_show_the_log(tmp_path, frame_folders, capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "dmgal")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    notebook = Notebook()
    folder = run(RECIPE, tmp_path / "run", catalog=VideoCatalog.from_folders(frame_folders), trackers=[notebook])
    logged = log(folder.folder)
    assert [step for step, _ in notebook.entries] == [entry["step"] for entry in logged]
    steps = [(values, entry) for (_, values), entry in zip(notebook.entries, logged, strict=True) if "loss" in entry]
    for values, entry in steps:
        assert values["loss"] == entry["loss"] and values["losses.base_classes"] == entry["losses"]["base_classes"]
        assert {"accuracy", "gradient_norm", "learning_rate", "seconds", "data_seconds", "peak_memory_mb"} <= set(entry)
    assert notebook.config["train.steps"] == 4 and notebook.config["head.name"] == "HyRSM"
    printed = capsys.readouterr()
    assert "1 process(es) on cpu, float32, 1 task(s) a step of 4 videos" in caplog.text
    assert "\r" not in printed.err
    for shown in ("episode/s", "loss=", "base_classes=", "accuracy=", "data=", "memory=", "<"):
        assert shown in printed.err, shown


def test_trackers_identify_runs_by_folder_and_resume(tmp_path, frame_folders, monkeypatch):
    options = []
    monkeypatch.setattr(
        Accelerator, "init_trackers", lambda self, name, config, init_kwargs: options.append(init_kwargs)
    )
    recipe = replace(RECIPE, train=TrainConfig(steps=1, validation_episodes=2))
    catalog = VideoCatalog.from_folders(frame_folders)
    for folder, resume in (("one", False), ("other", False), ("one", True)):
        started = Run(tmp_path / folder / "run")
        started.folder.mkdir(parents=True, exist_ok=True)
        started.start(recipe, resume, False, catalog)
        Tracking(recipe, started, make_accelerator(recipe, started.folder, [Notebook()]), quiet=True).start(step=0)
    ids = [given["wandb"]["id"] for given in options]
    assert ids[0] == ids[2] != ids[1]
    assert {given["wandb"]["name"] for given in options} == {"run"}
    assert [given["trackio"]["name"] for given in options] == [f"run-{key}" for key in ids]


@pytest.mark.slow
def test_early_stop_is_reported(tmp_path, frame_folders, caplog):
    caplog.set_level(logging.INFO, "dmgal")
    recipe = Recipe(
        data=RECIPE.data,
        adapter=RECIPE.adapter,
        episode=RECIPE.episode,
        train=TrainConfig(steps=9, learning_rate=0.0, validate_every=1, validation_episodes=2, patience=2),
    )
    catalog = VideoCatalog.from_folders(frame_folders)
    folder = run(recipe, tmp_path / "run", catalog=catalog, quiet=True)
    assert log(folder.folder)[-1]["step"] == 3  # the first is the best, and two more do not improve
    assert "stopped early at step 3" in caplog.text
    again = run(recipe, tmp_path / "run", catalog=catalog, quiet=True, resume=True)
    assert log(again.folder)[-1]["step"] == 3


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_missing_tracker_raises(tmp_path, data_flags, name, capsys):
    if any(find_spec(package) for package in PACKAGES[name]):
        pytest.skip(f"{name} is installed")
    out = tmp_path / "run"
    assert main(["train", "method/smga", *data_flags, "--train.tracker", name, "--out", str(out)]) == 2
    assert f"pip install {name}" in capsys.readouterr().err
    assert not out.exists()


def test_tensorboard_writes_into_run_folder(tmp_path, data_flags):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    out = tmp_path / "run"
    flags = ["--train.tracker", "tensorboard", "--train.steps", "1", "--out", str(out)]
    assert main(["train", "method/smga", *data_flags, *flags]) == 0
    assert list(out.rglob("events.out.tfevents*"))
