"""A run goes on where it was, or says why it cannot."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from trainings import assert_same_bits, log

from dmgal.cli import main
from dmgal.recipes.entry import exit_code
from dmgal.recipes.saving.checkpoints import Checkpoints
from dmgal.recipes.train import main as main_of_training
from dmgal.recipes.training.loop import Trainer
from dmgal.recipes.training.tracking import Tracking

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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_within_a_step_and_nothing_is_lost(tmp_path, words, whole, monkeypatch, name, capsys):
    out, step = tmp_path / "run", Tracking.step

    def signaled_at_three(self, number, *arguments):
        step(self, number, *arguments)
        if number == 3:
            os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "step", signaled_at_three)
        assert main([*words, "--out", str(out)]) == 75
    assert f"{name}: saved" in capsys.readouterr().out
    assert Checkpoints(out / "checkpoints").newest().progress["progress"]["step"] == 3
    assert "validation_accuracy" not in log(out)[-1]  # due, and cut short
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert_same_bits(whole, out)


def test_a_truncated_checkpoint_is_passed_over(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    newest = out / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main([*words, "--out", str(out), "--resume"]) == 0
    printed = capsys.readouterr()
    assert "step_00000006 is damaged (optimizer.safetensors has" in printed.err
    assert "resumed at step 4" in printed.out
    assert_same_bits(whole, out)


def test_a_finished_run_is_left_as_it_is(words, whole, capsys):
    before = (whole / "log.jsonl").read_bytes()
    assert main([*words, "--out", str(whole), "--resume"]) == 0
    assert "resumed at step 6" in capsys.readouterr().out
    assert (whole / "log.jsonl").read_bytes() == before


def test_another_recipe_is_listed_and_accepted_only_where_asked(tmp_path, words, whole, capsys):
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
    ("change", "anew"), [(["--train.validation-episodes", "6"], True), (["--train.learning-rate", "1e-3"], False)]
)
def test_the_best_of_other_tasks_is_forgotten(tmp_path, words, whole, change, anew, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert main([*words, "--out", str(out), "--resume", *change, "--accept-changes"]) == 0
    assert ("the best weights are chosen anew" in capsys.readouterr().out) == anew
    before, now = (Checkpoints(run / "checkpoints").newest().progress["selection"] for run in (whole, out))
    assert len(before["accuracies"]) == 8 and len(now["accuracies"]) == (6 if anew else 8)
    assert (before == now) == (not anew)


@pytest.mark.parametrize("optimizer", [["adam"], ["sgd", "--train.momentum", "0.9"]])
def test_every_optimizer_goes_on_to_the_same_bits(tmp_path, data_flags, monkeypatch, optimizer):
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


def test_another_optimizer_begins_anew(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    changed = ["--train.optimizer", "sgd", "--train.momentum", "0.9", "--train.steps", "7", "--accept-changes"]
    assert main([*words, "--out", str(out), "--resume", *changed]) == 0
    assert "what adamw remembers is of no use to sgd" in capsys.readouterr().out
    saved = Checkpoints(out / "checkpoints").newest().tensors["optimizer"]
    assert {name.partition(".")[0] for name in saved} == {"momentum_buffer"}


def test_a_validation_that_a_kill_cut_off_before_it_was_saved_is_done_again(tmp_path, words, whole, monkeypatch):
    """And stands in the log once, wherever the kill came."""
    for name, place in (("amend", Checkpoints), ("validation", Tracking)):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(Killed):
                main([*words, "--out", str(out)])
        assert main([*words, "--out", str(out), "--resume"]) == 0
        assert_same_bits(whole, out)


class Killed(BaseException):
    """As good as a kill: nothing handles it."""


def killed(*arguments, **options):
    raise Killed


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "--train.tasks-per-pass 1"),
        (KeyboardInterrupt(), 130, "interrupted: saved at step 2, from where the same command with --resume goes on"),
    ],
    ids=["out of memory", "Ctrl-C"],
)
def test_what_ends_a_training_says_how_to_go_on(tmp_path, words, monkeypatch, capsys, error, code, told):
    step = Trainer._train_step

    def ended_at_three(self, episodes):
        if self.progress.step == 2:
            raise error
        return step(self, episodes)

    monkeypatch.setattr(Trainer, "_train_step", ended_at_three)
    assert exit_code(main_of_training, [*words[1:], "--out", str(tmp_path / "run")]) == code
    assert told in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_disk_that_is_full_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, words, whole, capsys):
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
def test_a_folder_that_may_not_be_written_is_told(tmp_path, words, whole, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    out.chmod(0o555)
    assert main([*words, "--out", str(out), "--resume"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_cannot_be_made_is_told(words, capsys):
    assert main([*words, "--out", "/proc/run"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_folder_in_use_is_told(words, whole, capsys):
    hold = f"""
import sys, time
from pathlib import Path
from dmgal.recipes.saving.locking import locked
with locked(Path({str(whole)!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        assert main([*words, "--out", str(whole), "--resume"]) == 2
        assert f"process {holder.pid} trains" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
