"""What FSDP is told, whatever the launcher made of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from trainings import assert_same_bits, losses, trained_together

from dmgal.recipes.build import build_recognizer
from dmgal.recipes.config import Recipe
from dmgal.recipes.training.fsdp import blocks_of, divide_blocks


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_autocast_alone_chooses_the_numbers_and_weights_stay_in_float32(alone):
    """As Accelerate fills the plugin for --train.precision bf16 and fp16."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    state = SimpleNamespace(fsdp_plugin=plugin)
    recognizer = build_recognizer(Recipe())
    divide_blocks(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state), recognizer)
    assert plugin.mixed_precision_policy is None  # for the rest, which Accelerate divides
    blocks = blocks_of(recognizer)
    assert blocks
    for block in blocks:
        assert fully_shard.state(block)._fsdp_param_group.mp_policy == MixedPrecisionPolicy()


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def job(processes, method, data_flags, out, *flags):
    common = ["--train.tasks-per-step", str(processes), "--train.steps", "4", "--train.checkpoint-every", "2"]
    return {"processes": processes, "words": [f"method/{method}", *data_flags, *common, *flags, "--out", str(out)]}


@pytest.mark.slow
def test_parameters_with_fewer_rows_than_processes_are_trained_and_saved(tmp_path, data_flags):
    """Of the offsets of D2ST-Adapter's attention some of four processes have no part at all."""
    flags = ["--train.precision", "float64"]
    codes, errors = trained_together(job(4, "d2st", data_flags, tmp_path / "divided", *flags), **FSDP)
    assert codes == [[0] * 4], errors[-3000:]
    codes, errors = trained_together(job(4, "d2st", data_flags, tmp_path / "whole", *flags))
    assert codes == [[0] * 4], errors[-3000:]
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "whole"), rel=0, abs=1e-9)


@pytest.mark.slow
def test_a_run_under_fsdp_goes_on_to_the_same_bits(tmp_path, data_flags):
    one, parts = (job(2, "dmgal_adapter", data_flags, tmp_path / name, "--resume") for name in ("one", "parts"))
    stopped = {
        **parts,
        "befalls": {"signal": "SIGTERM", "rank": 1, "lines": 2, "log": str(tmp_path / "parts/log.jsonl")},
    }
    codes, errors = trained_together(one, stopped, parts, **FSDP)
    assert codes == [[0, 0], [75, 75], [0, 0]], errors[-3000:]
    assert_same_bits(tmp_path / "one", tmp_path / "parts")


def test_a_lora_that_hides_weights_is_refused(tmp_path, data_flags):
    codes, errors = trained_together(job(2, "lora", data_flags, tmp_path / "run"), **FSDP)
    assert codes == [[2, 2]] and "FSDP cannot divide the blocks" in errors


@pytest.mark.slow
def test_the_way_out_that_the_refusal_names_works(tmp_path, data_flags):
    ways_out = ["--adapter.target_modules", "[c_fc, c_proj]"]
    codes, errors = trained_together(job(2, "lora", data_flags, tmp_path / "run", *ways_out), **FSDP)
    assert codes == [[0, 0]], errors[-3000:]
