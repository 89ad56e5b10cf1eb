"""Contract of the adapter, and what it computes."""

import pytest
import torch
from dmgal_example_adapter import TemporalShift, TemporalShiftConfig

from dmgal.backbones import load_backbone
from dmgal.testing import ADAPTER_CHECKS, AdapterCase

CASE = AdapterCase(
    make_backbone=lambda: load_backbone("tiny-clip"),
    config=TemporalShiftConfig(num_frames=2, blocks=[0, -1]),
    videos=torch.randn(4, 2, 3, 48, 48, generator=torch.Generator().manual_seed(0)),
)


@pytest.mark.parametrize("check", ADAPTER_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(CASE)


def test_gates_of_one_shift_by_a_frame():
    shift, tokens = TemporalShift(2), torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    shift.from_previous.data = torch.tensor([1.0, 0.0])
    shift.from_next.data = torch.tensor([0.0, 1.0])
    assert shift(tokens)[0, :, 0].tolist() == [[0, 1], [0, 2], [1, 2]]
