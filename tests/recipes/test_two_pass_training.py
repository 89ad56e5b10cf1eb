"""Two-pass training and remembered frames have the losses of plain training, also on several processes."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from trainings import assert_same_bits, log, losses, trained_together

from dmgal.cli import main
from dmgal.episodes.two_pass import plan
from dmgal.errors import DmgalError
from dmgal.recipes.run.checkpoints import Checkpoints
from dmgal.recipes.run.config import Recipe, TrainConfig
from dmgal.recipes.run.layers import from_mapping
from dmgal.recipes.training.step import make_two_pass

STEPS = ["--train.steps", "2", "--train.tasks-per-step", "2", "--queries", "2", "--train.validate-every", "2"]
EXACT = [*STEPS, "--train.precision", "float64"]
TWO_PASSES = ["--train.two-pass", "3"]  # of a task's six videos
LAST_BLOCK = ["--adapter.smga-blocks", "[-1]"]
REMEMBERED = ["--train.frame-memory", "0.1"]
METHODS = ["dmgal_adapter", "dmgal_ft"]
JOBS = {
    **{method: (1, [f"method/{method}"], EXACT) for method in METHODS},
    **{f"{method} in two": (1, [f"method/{method}"], [*EXACT, *TWO_PASSES]) for method in METHODS},
    "two processes": (2, ["method/dmgal_adapter"], [*EXACT, *TWO_PASSES]),
    "two processes, all trained": (2, ["method/dmgal_ft"], [*EXACT, *TWO_PASSES]),
    "last block": (1, ["method/smga", *LAST_BLOCK], EXACT),
    "last block in two": (1, ["method/smga", *LAST_BLOCK], [*EXACT, *TWO_PASSES, *REMEMBERED]),
    "last block, remembered": (1, ["method/smga", *LAST_BLOCK], [*EXACT, *REMEMBERED]),
    "bf16": (1, ["method/dmgal_adapter"], [*STEPS, "--train.precision", "bf16"]),
    "bf16 in two": (1, ["method/dmgal_adapter"], [*STEPS, "--train.precision", "bf16", *TWO_PASSES]),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, data_flags):
    """Return the run of a job, which trains when it is first asked for."""
    folder = tmp_path_factory.mktemp("two passes")

    def run_of(name):
        if not (folder / name).exists():
            processes, method, flags = JOBS[name]
            words = [*method, *data_flags, *flags, "--out", str(folder / name)]
            codes, errors = trained_together({"processes": processes, "words": words})
            assert set(codes[0]) == {0}, errors[-3000:]
        return folder / name

    return run_of


def norms(run):
    return [entry["gradient_norm"] for entry in log(run) if "loss" in entry]


@pytest.mark.parametrize("name", ["last block, remembered", pytest.param("last block in two", marks=pytest.mark.slow)])
def test_remembered_frames_change_no_loss(run_of, name):
    assert losses(run_of(name)) == pytest.approx(losses(run_of("last block")), rel=1e-8)
    assert norms(run_of(name)) == pytest.approx(norms(run_of("last block")), rel=1e-8)


@pytest.mark.parametrize("method", ["dmgal_adapter", pytest.param("dmgal_ft", marks=pytest.mark.slow)])
def test_two_passes_equal_plain_training(run_of, method):
    """Includes several tasks per step. Dropout and head losses: tests/episodes/test_two_pass.py."""
    one, other = run_of(method), run_of(f"{method} in two")
    assert len(losses(one)) == 2 == len(set(losses(one)))
    assert losses(other) == pytest.approx(losses(one), rel=1e-8)
    assert norms(other) == pytest.approx(norms(one), rel=1e-8)


@pytest.mark.parametrize(("method", "name"), [("dmgal_adapter", ""), ("dmgal_ft", ", all trained")])
@pytest.mark.slow
def test_two_processes_average_their_gradients(run_of, method, name):
    one, other = run_of(method), run_of(f"two processes{name}")
    assert losses(other) == pytest.approx(losses(one), rel=0, abs=1e-9)
    assert norms(other) == pytest.approx(norms(one), rel=1e-8)


@pytest.mark.slow
def test_mixed_precision(run_of):
    assert losses(run_of("bf16 in two")) == pytest.approx(losses(run_of("bf16")), rel=0.05)


@pytest.mark.slow
def test_chunk_is_measured_and_reported(tmp_path, data_flags, capsys):
    words = ["train", "method/smga", *data_flags, "--train.steps", "1", "--train.two-pass", "auto"]
    assert main([*words, "--out", str(tmp_path / "free")]) == 0
    assert "of 4 videos a task, 4 at once in" in capsys.readouterr().err
    assert main([*words, "--train.memory-budget", "1e-6", "--out", str(tmp_path / "little")]) == 0
    assert "of 4 videos a task, 1 at once in 0.00 GB, although one needs more" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"two_pass": 0}, {"memory_budget": 0.0}])
def test_impossible_options_raise(options):
    with pytest.raises(DmgalError, match=f"train.{next(iter(options))}: 0"):
        TrainConfig(**options)


def test_batch_norms_in_training_mode_raise(tmp_path, data_flags, capsys):
    flags = ["--train.steps", "1", "--train.two-pass", "2", "--backbone.no-freeze-batch-norm"]
    assert main(["train", "method/dmgal_ft", *data_flags, *flags, "--out", str(tmp_path / "run")]) == 2
    assert "those of a chunk are not those of the batch" in capsys.readouterr().err


@pytest.mark.parametrize("launched", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_weights_raise(launched):
    accelerator = SimpleNamespace(distributed_type=launched)
    with pytest.raises(DmgalError, match="all weights on every process"):
        make_two_pass(Recipe(train=TrainConfig(two_pass="auto")), None, accelerator)
    assert make_two_pass(Recipe(), None, accelerator) is None


def test_layer_sets_chunk():
    assert [from_mapping(TrainConfig, {"two_pass": value}).two_pass for value in ("no", "auto", 4)] == ["no", "auto", 4]
    with pytest.raises(DmgalError, match="two_pass: 'always'"):
        from_mapping(TrainConfig, {"two_pass": "always"})


@pytest.mark.slow
def test_resumed_run_keeps_its_chunk(tmp_path, data_flags, monkeypatch):
    words = ["train", "method/dmgal_adapter", *data_flags, "--train.two-pass", "auto", "--train.checkpoint-every", "2"]
    words += ["--train.steps", "4", "--out", str(tmp_path / "run"), "--resume"]
    monkeypatch.setattr(plan, "free_bytes", lambda device: 1e7)
    assert main(words) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    before = Checkpoints(tmp_path / "whole" / "checkpoints").newest().progress["two_pass"]
    assert before["chunk"] < 4 and before["kept"]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    monkeypatch.setattr(plan, "free_bytes", lambda device: 1e12)
    assert main(words) == 0
    assert Checkpoints(tmp_path / "run" / "checkpoints").newest().progress["two_pass"] == before
    assert_same_bits(tmp_path / "whole", tmp_path / "run")
