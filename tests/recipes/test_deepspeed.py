"""Saving and resuming under DeepSpeed, simulated without its package."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import DistributedType

from dmgal.cli import main
from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.training.trainer import Trainer


@pytest.fixture
def as_under_deepspeed(monkeypatch):
    """Flat optimizer groups, as in ZeRO, and a step that is not ours."""
    prepare = Trainer.prepare

    def prepared(self, resume):
        prepare(self, resume)
        monkeypatch.setattr(self.accelerator.state, "distributed_type", DistributedType.DEEPSPEED)
        for group in self.state.optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))]

    def step(self, episodes):
        self.progress.step += 1
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "prepare", prepared)
        patch.setattr(Trainer, "_train_step", step)
        yield patch


def test_deepspeed_run_saves_weights_but_cannot_be_resumed(tmp_path, data_flags, as_under_deepspeed, capsys):
    out = tmp_path / "run"
    words = ["train", "method/smga", *data_flags, "--train.steps", "2", "--out", str(out)]
    assert main(words) == 0
    assert "The optimizer's state is not saved under DeepSpeed: this run cannot be resumed" in capsys.readouterr().err
    assert set(Checkpoints(out / "checkpoints").newest().tensors) == {"model"}
    assert main(["evaluate", str(out), "--episodes", "4", "--quiet"]) == 0
    as_under_deepspeed.undo()
    assert main([*words, "--resume"]) == 2
    message = capsys.readouterr().err
    assert "cannot be resumed" in message and "step_00000002, without the state of its optimizer" in message
