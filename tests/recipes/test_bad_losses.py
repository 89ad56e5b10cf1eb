"""Policy for losses that are not finite or explode."""

from __future__ import annotations

import logging
import math
import os
import signal
from dataclasses import replace

import pytest
from trainings import log

from dmgal.episodes.heads import BiMHM
from dmgal.errors import DmgalError
from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.train import run
from dmgal.recipes.training.optimization import NEEDED, BadLosses
from dmgal.recipes.training.signals import Preempted
from dmgal.recipes.training.tracking import Tracking
from dmgal.videos import VideoCatalog


def policy(**options) -> BadLosses:
    return BadLosses(TrainConfig(**options), guessing=math.log(5))


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (math.nan, 1.0, "the loss is not a finite number (nan)"),
        (math.inf, 1.0, "the loss is not a finite number (inf)"),
        (1.0, math.nan, "the gradient is not a finite number (nan)"),
        (1e9, 1.0, "the loss explodes"),
    ],
)
def test_bad_loss_is_detected(loss, norm, problem):
    seen = policy()
    for _ in range(NEEDED):
        assert seen.verdict(1.5, 1.0) is None
    assert seen.verdict(loss, norm).startswith(problem)
    assert (seen.in_row, seen.total) == (1, 1)
    assert seen.verdict(1.5, 1.0) is None
    assert (seen.in_row, seen.total) == (0, 1)


def test_confident_mistake_after_perfect_tasks_is_not_an_explosion():
    seen = policy()
    for _ in range(50):
        seen.verdict(1e-6, 1e-6)
    assert seen.verdict(20.0, 1.0) is None


def test_max_bad_losses_in_a_row_end_the_run():
    seen = policy(max_bad_losses=3)
    for step in (1, 2):
        seen.check(seen.verdict(math.nan, 1.0), step)
    with pytest.raises(DmgalError, match=r"at step 3; 3 bad step\(s\) in a row"):
        seen.check(seen.verdict(math.nan, 1.0), 3)


def test_stop_policy_ends_at_first_bad_loss():
    seen = policy(on_bad_loss="stop")
    with pytest.raises(DmgalError, match="not a finite number"):
        seen.check(seen.verdict(math.nan, 1.0), 1)


class Broken(BiMHM):
    """Head that returns NaN in some training steps."""

    def __init__(self, *bad: int) -> None:
        super().__init__()
        self.bad, self.step = bad, 0

    def compare(self, support, labels, query):
        output = super().compare(support, labels, query)
        if self.training:
            self.step += 1
            if self.step in self.bad:
                return replace(output, logits=output.logits * math.nan)
        return output


def trained_with(head, tmp_path, frame_folders, **options):
    recipe = Recipe(
        data=DataConfig(num_workers=0, keep_in_memory=True),
        adapter={"peft_type": "DMGAL"},
        episode=EpisodeConfig(n_way=2, n_query=1),
        train=TrainConfig(**{"steps": 5, "validate_every": 5, "validation_episodes": 2, **options}),
    )
    catalog = VideoCatalog.from_folders(frame_folders)
    return run(recipe, tmp_path / "run", catalog=catalog, head=head, quiet=True)


def test_bad_steps_are_skipped_logged_and_counted(tmp_path, frame_folders, caplog):
    caplog.set_level(logging.INFO, "dmgal")
    folder = trained_with(Broken(2, 3), tmp_path, frame_folders)
    entries = log(folder.folder)
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 4, 5]
    assert [(entry["step"], entry["bad_steps_in_a_row"]) for entry in entries if "bad_step" in entry] == [
        (2, 1),
        (3, 2),
    ]
    assert all(math.isfinite(entry["loss"]) for entry in entries if "loss" in entry)
    printed = caplog.text
    assert (
        "step 3: the loss is not a finite number (nan), so the step is skipped (2 in a row, 10 end the run)" in printed
    )
    assert "2 of 5 steps were skipped because of a bad loss" in printed


def test_diverged_training_ends(tmp_path, frame_folders):
    with pytest.raises(DmgalError, match=r"at step 4; 3 bad step\(s\) in a row"):
        trained_with(Broken(2, 3, 4), tmp_path, frame_folders, max_bad_losses=3)


def test_run_with_bad_last_steps_is_finished(tmp_path, frame_folders):
    folder = trained_with(Broken(2, 3), tmp_path, frame_folders, steps=3).folder
    last = Checkpoints(folder / "checkpoints").newest().progress
    assert last["progress"]["step"] == 3 and last["bad_losses"]["in_row"] == 2
    assert log(folder)[-1]["step"] == 3 and "validation_accuracy" in log(folder)[-1]


def test_stop_during_bad_steps_reports_last_checkpoint(tmp_path, frame_folders, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "dmgal")
    tell = Tracking.bad_step

    def signaled(self, *arguments):
        tell(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracking, "bad_step", signaled)
    with pytest.raises(Preempted):
        trained_with(Broken(3, 4), tmp_path, frame_folders, checkpoint_every=2)
    assert "SIGTERM: saved at step 2, from where" in caplog.text
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest().progress["progress"]["step"] == 2
