"""Training with a scaled loss as in fp16, on the CPU with the scaler that Accelerate creates on GPUs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from trainings import log

import dmgal.recipes.train as train
from dmgal.episodes.heads import BiMHM
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import DataConfig, EpisodeConfig, Recipe, TrainConfig
from dmgal.recipes.training.step import TrainingStep
from dmgal.videos import VideoCatalog


class Broken(BiMHM):
    """Head that returns NaN or gradients that are not finite in some training steps."""

    def __init__(self, losses=(), gradients=()) -> None:
        super().__init__()
        self.losses, self.gradients, self.step = losses, gradients, 0

    def compare(self, support, labels, query):
        output = super().compare(support, labels, query)
        if self.training:
            self.step += 1
            if self.step in self.losses:
                return replace(output, logits=output.logits * math.nan)
            if self.step in self.gradients:
                output.logits.register_hook(lambda gradient: gradient * math.inf)
        return output


@pytest.fixture
def trained(tmp_path, frame_folders, monkeypatch):
    """Train some steps with a head."""
    make = train.make_accelerator

    def scaled(*arguments):
        accelerator = make(*arguments)
        accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=4.0), True
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    monkeypatch.setattr(train, "make_accelerator", scaled)

    def run(head, **options):
        options = {"validate_every": 100, "validation_episodes": 2, **options}
        recipe = Recipe(
            data=DataConfig(num_workers=0, keep_in_memory=True, num_frames=4),
            adapter={"peft_type": "DMGAL"},
            episode=EpisodeConfig(n_way=2, n_query=1),
            train=TrainConfig(**options),
        )
        catalog = VideoCatalog.from_folders(frame_folders)
        return train.run(recipe, tmp_path / "run", catalog=catalog, head=head, quiet=True).folder

    return run


def test_training_continues_after_bad_loss(trained):
    folder = trained(Broken(losses=(2, 3)), steps=5)
    assert [entry["step"] for entry in log(folder) if "loss" in entry] == [1, 4, 5]


@pytest.mark.slow
def test_gradient_is_unscaled_once_under_fsdp(trained, monkeypatch):
    clipped, lengths = TrainingStep._clip, []

    def under_fsdp(self):
        of_trained = torch.nn.utils.get_total_norm([p.grad for p in self._recognizer.parameters() if p.requires_grad])
        state = self._accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        before, state.distributed_type = state.distributed_type, DistributedType.FSDP
        try:
            lengths.append((clipped(self), of_trained.item() / 4.0))  # the scale is a power of two
        finally:
            state.distributed_type = before
        return lengths[-1][0]

    monkeypatch.setattr(TrainingStep, "_clip", under_fsdp)
    trained(BiMHM(), steps=2)
    assert len(lengths) == 2
    for length, of_trained in lengths:
        assert length == of_trained > 0


def test_gradients_not_finite_at_any_scale_end_the_run(trained, capsys):
    """Two overflows halve the scale, which starts at 4. The next three are attributed to the gradient."""
    with pytest.raises(DmgalError, match=r"the gradient is not a finite number .* at step 5; 3 bad step\(s\) in a row"):
        trained(Broken(gradients=range(1, 20)), steps=20, max_bad_losses=3)


@pytest.mark.slow
def test_average_ignores_steps_skipped_by_scaler(trained):
    folder = trained(Broken(gradients=(2,)), steps=3, checkpoint_every=1, keep_checkpoints=3, ema=0.5)
    assert [entry["step"] for entry in log(folder) if "overflow" in entry] == [2]
    first, second, third = (load_file(folder / f"checkpoints/step_0000000{n}/average.safetensors") for n in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)
