"""Resuming a run, and errors that prevent it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from types import SimpleNamespace

import forked
import pytest
import torch
from trainings import assert_same_bits, log

from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.run.cli_errors import exit_code
from dmgal.recipes.train import main as main_of_training
from dmgal.recipes.training.tracking import Tracking
from dmgal.recipes.training.trainer import Trainer
from dmgal.recipes.training.training_state import TrainingState

STEPS = ["--train.steps", "6", "--train.checkpoint-every", "2", "--train.validate-every", "3"]
AVERAGED = ["--train.ema", "0.9", "--train.schedule", "linear"]


@pytest.fixture(scope="module")
def words(data_flags):
    return ["train", "method/dmgal_adapter", *data_flags, *STEPS, *AVERAGED]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, words):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*words, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=pytest.mark.slow)])
def test_signal_saves_within_a_step(tmp_path, words, whole, monkeypatch, name, capsys):
    out, step = tmp_path / "run", Tracking.step

    def signaled_at_three(self, number, *arguments):
        step(self, number, *arguments)
        if number == 3:
            os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "step", signaled_at_three)
        assert main([*words, "--out", str(out)]) == 75
    assert f"{name}: saved" in capsys.readouterr().err
    assert Checkpoints(out / "checkpoints").newest().progress["progress"]["step"] == 3
    assert "validation_accuracy" not in log(out)[-1]  # due, but interrupted
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert_same_bits(whole, out)


def test_truncated_checkpoint_is_skipped(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    newest = out / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main([*words, "--out", str(out), "--resume"]) == 0
    printed = capsys.readouterr().err
    assert "step_00000006 is damaged (optimizer.safetensors has" in printed
    assert "resumed at step 4" in printed
    assert_same_bits(whole, out)


def test_finished_run_is_unchanged(words, whole, capsys):
    before = (whole / "log.jsonl").read_bytes()
    assert main([*words, "--out", str(whole), "--resume"]) == 0
    assert "resumed at step 6" in capsys.readouterr().err
    assert (whole / "log.jsonl").read_bytes() == before


def test_recipe_changes_need_accept_changes(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed = [*words, "--out", str(out), "--resume", "--train.steps", "7", "--train.ema", "0.5"]
    assert main(changed) == 2
    message = capsys.readouterr().err
    assert "train.ema=0.5, train.steps=7" in message and "train.ema=0.9, train.steps=6" in message
    assert main([*changed, "--accept-changes"]) == 0
    assert {"step": 6, "recipe_changes": {"train.ema": [0.9, 0.5], "train.steps": [6, 7]}} in log(out)
    assert log(out)[-1]["step"] == 7
    assert "steps: 7" in (out / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "is_reset"), [(["--train.validation-episodes", "6"], True), (["--train.learning-rate", "1e-3"], False)]
)
@pytest.mark.slow
def test_best_is_reset_if_validation_tasks_change(tmp_path, words, whole, change, is_reset, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert main([*words, "--out", str(out), "--resume", *change, "--accept-changes"]) == 0
    assert ("the best weights are selected again" in capsys.readouterr().err) == is_reset
    before, now = (Checkpoints(run / "checkpoints").newest().progress["selection"] for run in (whole, out))
    assert len(before["accuracies"]) == 8 and len(now["accuracies"]) == (6 if is_reset else 8)
    assert (before == now) == (not is_reset)


@pytest.mark.parametrize("optimizer", [["adam"], ["sgd", "--train.momentum", "0.9"]])
@pytest.mark.slow
def test_resume_is_bit_identical_for_every_optimizer(tmp_path, data_flags, monkeypatch, optimizer):
    words = ["train", "method/smga", *data_flags, "--train.steps", "3", "--train.optimizer", *optimizer]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    step = Tracking.step

    def signaled_at_two(self, number, *arguments):
        step(self, number, *arguments)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "step", signaled_at_two)
        assert main([*words, "--out", str(tmp_path / "parts")]) == 75
    assert main([*words, "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_changed_optimizer_starts_without_state(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed = ["--train.optimizer", "sgd", "--train.momentum", "0.9", "--train.steps", "7", "--accept-changes"]
    assert main([*words, "--out", str(out), "--resume", *changed]) == 0
    assert "sgd cannot use the saved state of adamw" in capsys.readouterr().err
    saved = Checkpoints(out / "checkpoints").newest().tensors["optimizer"]
    assert {name.partition(".")[0] for name in saved} == {"momentum_buffer"}


@pytest.mark.slow
def test_killed_validation_is_repeated(tmp_path, words, whole, monkeypatch):
    """Its result is in the log once, regardless of the time of the kill."""
    for name, place in (("amend", Checkpoints), ("validation", Tracking)):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(Killed):
                main([*words, "--out", str(out)])
        assert main([*words, "--out", str(out), "--resume"]) == 0
        assert_same_bits(whole, out)


class Killed(BaseException):
    """Stand-in for a kill that no handler catches."""


def killed(*arguments, **options):
    raise Killed


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "--train.tasks-per-pass 1"),
        (KeyboardInterrupt(), 130, "interrupted: saved at step 2, from where the same command with --resume continues"),
    ],
    ids=["out of memory", "Ctrl-C"],
)
def test_interruption_reports_how_to_resume(tmp_path, words, monkeypatch, capsys, error, code, told):
    step = Trainer._train_step

    def ended_at_three(self, episodes):
        if self.progress.step == 2:
            raise error
        return step(self, episodes)

    monkeypatch.setattr(Trainer, "_train_step", ended_at_three)
    assert exit_code(main_of_training, [*words[1:], "--out", str(tmp_path / "run")]) == code
    assert told in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.slow
def test_full_disk_raises_and_run_resumes_later(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        assert main([*words, "--out", str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    message = capsys.readouterr().err
    assert "cannot be written" in message and "Traceback" not in message
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert_same_bits(whole, out)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_raises(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    out.chmod(0o555)
    assert main([*words, "--out", str(out), "--resume"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_impossible_folder_raises(words, capsys):
    assert main([*words, "--out", "/proc/run"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_folder_in_use_raises(words, whole, capsys):
    hold = f"""
import sys, time
from pathlib import Path
from dmgal.recipes.run.folder import Run
with Run(Path({str(whole)!r})).locked():
    print("locked", flush=True)
    time.sleep(60)
"""
    holder = forked.start(["-c", hold])
    try:
        while holder.stdout != "locked\n":
            assert holder.poll() == [None], holder.stderr
        assert main([*words, "--out", str(whole), "--resume"]) == 2
        assert f"process {holder.pids[0]} trains" in capsys.readouterr().err
    finally:
        holder.kill()


def test_processes_must_share_the_run_folder():
    accelerator = SimpleNamespace(device="cpu", gather=lambda step: torch.tensor([4, 2]))
    state = SimpleNamespace(progress=SimpleNamespace(step=4), _accelerator=accelerator)
    with pytest.raises(DmgalError, match=r"at steps \[2, 4\](.|\n)*shared disk"):
        TrainingState._check_shared_folder(state)


def test_a_run_beyond_the_step_that_its_folds_choose_is_refused():
    trainer = SimpleNamespace(_validation=SimpleNamespace(only_step=2), progress=SimpleNamespace(step=4))
    trainer.state = SimpleNamespace(last_step=2)
    with pytest.raises(DmgalError, match=r"a checkpoint of step 4(.|\n)*choose step 2"):
        Trainer._check_last_step(trainer)
