"""What FSDP is told, whatever the launcher made of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

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
