"""FSDP options and training under FSDP."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from trainings import assert_same_bits, losses, trained_together

from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe
from dmgal.recipes.training.fsdp import blocks_of, shard_blocks


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_mixed_precision_is_left_to_autocast(alone):
    """Accelerate fills the plugin like this for --train.precision bf16 and fp16."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    state = SimpleNamespace(fsdp_plugin=plugin)
    recognizer = build_recognizer(Recipe())
    shard_blocks(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state), recognizer)
    assert plugin.mixed_precision_policy is None  # for the rest, which Accelerate divides
    blocks = blocks_of(recognizer.encoder)
    assert blocks
    for block in blocks:
        assert fully_shard.state(block)._fsdp_param_group.mp_policy == MixedPrecisionPolicy()


def test_version_1_is_refused():
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    with pytest.raises(DmgalError, match=r"fsdp_version 1\n(.|\n)*launch/fsdp.yaml"):
        shard_blocks(SimpleNamespace(distributed_type=DistributedType.FSDP, state=state), torch.nn.Identity())


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def job(processes, method, data_flags, out, *flags):
    common = ["--train.tasks-per-step", str(processes), "--train.steps", "4", "--train.checkpoint-every", "2"]
    return {"processes": processes, "words": [f"method/{method}", *data_flags, *common, *flags, "--out", str(out)]}


@pytest.mark.slow
def test_parameters_with_fewer_rows_than_processes_train(tmp_path, data_flags):
    """Some of four processes have an empty shard of the offsets in D2ST-Adapter's attention."""
    flags = ["--train.precision", "float64"]
    codes, errors = trained_together(job(4, "d2st", data_flags, tmp_path / "divided", *flags), **FSDP)
    assert codes == [[0] * 4], errors[-3000:]
    codes, errors = trained_together(job(4, "d2st", data_flags, tmp_path / "whole", *flags))
    assert codes == [[0] * 4], errors[-3000:]
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "whole"), rel=0, abs=1e-9)


@pytest.mark.slow
def test_side_network_trains(tmp_path, data_flags):
    """Its state takes gradients past the outputs of the blocks."""
    flags = ["--train.precision", "float64"]
    codes, errors = trained_together(job(2, "side", data_flags, tmp_path / "divided", *flags), **FSDP)
    assert codes == [[0, 0]], errors[-3000:]
    codes, errors = trained_together(job(2, "side", data_flags, tmp_path / "whole", *flags))
    assert codes == [[0, 0]], errors[-3000:]
    assert losses(tmp_path / "divided") == pytest.approx(losses(tmp_path / "whole"), rel=0, abs=1e-9)


@pytest.mark.slow
def test_fsdp_resume_is_bit_identical(tmp_path, data_flags):
    one, parts = (job(2, "dmgal_adapter", data_flags, tmp_path / name, "--resume") for name in ("one", "parts"))
    stopped = {
        **parts,
        "befalls": {"signal": "SIGTERM", "rank": 1, "lines": 2, "log": str(tmp_path / "parts/log.jsonl")},
    }
    codes, errors = trained_together(one, stopped, parts, **FSDP)
    assert codes == [[0, 0], [75, 75], [0, 0]], errors[-3000:]
    assert_same_bits(tmp_path / "one", tmp_path / "parts")


def test_lora_with_hidden_weights_raises(tmp_path, data_flags):
    codes, errors = trained_together(job(2, "lora", data_flags, tmp_path / "run"), **FSDP)
    (of_ranks,) = codes  # the second one to stop may find the connection closed
    assert 2 in of_ranks and 0 not in of_ranks and "FSDP cannot shard the blocks" in errors


@pytest.mark.slow
def test_remedy_for_hidden_weights_works(tmp_path, data_flags):
    remedy = ["--adapter.target_modules", "[c_fc, c_proj]"]
    codes, errors = trained_together(job(2, "lora", data_flags, tmp_path / "run", *remedy), **FSDP)
    assert codes == [[0, 0]], errors[-3000:]
