"""The model card that is saved with an adapter."""

from __future__ import annotations

import peft
import pytest
from tiny_backbones import TINY_BACKBONES

from dmgal.adapters import AIMConfig, BitFitConfig, D2STConfig, DmgalConfig, STAdapterConfig


def saved_card(config, folder):
    model = peft.get_peft_model(TINY_BACKBONES["open_clip visual"].make(), config)
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_card_tells_method_backbone_shapes_reconstruction_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/my_train.py", "--shots", "1"])
    config = DmgalConfig(num_frames=4)
    config.backbone = "hf:somebody/some-vit"
    card = saved_card(config, tmp_path)
    assert "DMGAL-Adapter" in card and "arXiv 2411.11335" in card and "our reconstruction" in card
    for row in ("| width | 32 |", "| grid | [4, 4] |", "| smga_blocks | [0, 1] |", "| bottleneck | 8 |"):
        assert row in card, row
    assert "    my_train.py --shots 1\n" in card and "/somewhere" not in card
    assert "library_name: peft" in card and "base_model: somebody/some-vit" in card
    assert "More Information Needed" not in card


def test_a_given_command_counts(tmp_path):
    card = saved_card(DmgalConfig(command="dmgal train method/dmgal_adapter"), tmp_path)
    assert "    dmgal train method/dmgal_adapter\n" in card


@pytest.mark.parametrize("config", [STAdapterConfig(), AIMConfig(), D2STConfig(), BitFitConfig()], ids=lambda c: c.kind)
def test_published_methods_are_not_called_ours(config, tmp_path):
    card = saved_card(config, tmp_path)
    assert config.title in card and "our reconstruction" not in card


def test_what_a_person_wrote_is_kept(tmp_path):
    saved_card(DmgalConfig(), tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("# DMGAL-Adapter", "# My adapter\nTrained on my cats."))
    card = saved_card(DmgalConfig(bottleneck=4), tmp_path)
    assert "Trained on my cats." in card and "| bottleneck | 4 |" in card and "| bottleneck | 8 |" not in card
    assert card.count("Method:") == 1
