"""Contract of the backbone, and its two forms of names."""

import pytest
import torch
from dmgal_example_backbone import Mixer
from safetensors.torch import save_file

from dmgal.backbones import load_backbone
from dmgal.errors import DmgalError
from dmgal.testing import BACKBONE_CHECKS, BackboneCase

CASE = BackboneCase(
    make_backbone=lambda: load_backbone("mixer:tiny").requires_grad_(False),
    videos=torch.randn(2, 3, 3, 48, 48, generator=torch.Generator().manual_seed(0)),
)


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(CASE)


def test_weights_of_a_file_are_loaded(tmp_path):
    path, model = tmp_path / "mixer.safetensors", Mixer(width=32, depth=2).eval()
    save_file(model.state_dict(), path)
    loaded = load_backbone(f"mixer:{path}")
    assert loaded.dmgal_name == f"mixer:{path}"
    assert torch.equal(loaded(CASE.videos[0]), model(CASE.videos[0]))


def test_other_files_are_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DmgalError, match="no Mixer"):
        load_backbone(f"mixer:{tmp_path / 'other.safetensors'}")
