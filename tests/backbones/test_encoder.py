"""Errors of the encoder. ``test_families.py`` tests its features through the contract of backbones."""

from __future__ import annotations

import pytest
import torch
from tiny_backbones import TINY_BACKBONES

from dmgal.backbones import FrameEncoder, find_spec, load_backbone
from dmgal.errors import DmgalError


@pytest.mark.parametrize("name", ["tiny-clip", *TINY_BACKBONES])
def test_construction_does_not_modify_the_backbone(name):
    backbone = load_backbone(name) if name == "tiny-clip" else TINY_BACKBONES[name].make()
    before = snapshot(backbone)
    FrameEncoder(backbone, "patch_mean")
    assert snapshot(backbone) == before


def snapshot(model):
    """Return the identities of everything that a model consists of, and the version and values of its tensors."""
    attributes = {
        (path, name): {key: id(item) for key, item in value.items()} if isinstance(value, dict) else id(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }
    return attributes, {name: (tensor._version, tensor.sum().item()) for name, tensor in model.state_dict().items()}


def test_unknown_pooling_error_lists_valid_ones():
    with pytest.raises(DmgalError, match="'patch_mean'"):
        FrameEncoder(TINY_BACKBONES["ViT"].make(), "max")


def test_unrecognized_backbone_error_lists_stacks():
    blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3))
    with pytest.raises(DmgalError, match=r"blocks \(3 x Sequential, width 2\)"):
        find_spec(torch.nn.ModuleDict({"blocks": blocks}))
