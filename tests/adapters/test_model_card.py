"""The model card that is saved with an adapter."""

from __future__ import annotations

import peft
import pytest
from tiny_backbones import TINY_BACKBONES

from dmgal.adapters import AIMConfig, BitFitConfig, D2STConfig, DmgalConfig, STAdapterConfig
from dmgal.adapters.model_card import command_line


def saved_card(config, folder):
    model = peft.get_peft_model(TINY_BACKBONES["open_clip visual"].make(), config)
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_card_has_method_backbone_shapes_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/my_train.py", "--shots", "1"])
    config = DmgalConfig(num_frames=4)
    config.backbone = "hf:owner/some-vit"
    card = saved_card(config, tmp_path)
    assert config.command is None, "the user's own config is left alone"
    assert "DMGAL-Adapter" in card and "arXiv 2411.11335" in card and "our reconstruction" in card
    for row in (
        "| width | 32 |",
        "| grid | [4, 4] |",
        "| smga_blocks | [0, 1] |",
        "| bottleneck | 8 |",
        "| peft_type | DMGAL |",
    ):
        assert row in card, row
    assert "    my_train.py --shots 1\n" in card and "/somewhere" not in card
    assert "library_name: peft" in card and "base_model: owner/some-vit" in card
    assert "More Information Needed" not in card


def test_explicit_command_is_used(tmp_path):
    card = saved_card(DmgalConfig(command="dmgal train method/dmgal_adapter"), tmp_path)
    assert "    dmgal train method/dmgal_adapter\n" in card


@pytest.mark.parametrize("config", [STAdapterConfig(), AIMConfig(), D2STConfig(), BitFitConfig()], ids=lambda c: c.kind)
def test_published_methods_are_not_called_reconstructions(config, tmp_path):
    card = saved_card(config, tmp_path)
    assert config.title in card and "our reconstruction" not in card


def test_user_text_is_kept(tmp_path):
    saved_card(DmgalConfig(), tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("# DMGAL-Adapter", "# My adapter\nTrained on my cats."))
    card = saved_card(DmgalConfig(bottleneck=4), tmp_path)
    assert "Trained on my cats." in card and "| bottleneck | 4 |" in card and "| bottleneck | 8 |" not in card
    assert card.count("Method:") == 1


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ["/home/me/train.py", "--out", "/home/me/runs/x", "--hub-token", "hf_1"],
            "train.py --out x --hub-token '***'",
        ),
        (["train.py", "--api-key=1", "--lr=1e-3"], "train.py '--api-key=***' --lr=1e-3"),
        (["/usr/lib/ipykernel_launcher.py", "-f", "/home/me/kernel.json"], "an interactive session"),
        ([""], "an interactive session"),
    ],
)
def test_command_hides_secrets_and_folders(words, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", words)
    assert command_line() == shown


def test_loaded_adapter_keeps_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    saved_card(DmgalConfig(), tmp_path / "made")
    monkeypatch.setattr("sys.argv", ["convert.py"])
    loaded = peft.PeftModel.from_pretrained(TINY_BACKBONES["open_clip visual"].make(), tmp_path / "made")
    loaded.save_pretrained(tmp_path / "converted")
    assert "    train.py\n" in (tmp_path / "converted" / "README.md").read_text()


@pytest.mark.parametrize(("name", "linked"), [("open_clip:ViT-B-16", None), ("timm:vit_x.tag", "timm/vit_x.tag")])
def test_only_hub_repositories_are_linked(name, linked, tmp_path):
    card = saved_card(DmgalConfig(backbone=name), tmp_path)
    assert (f"base_model: {linked}" in card) if linked else ("base_model" not in card)


def test_unfilled_field_in_user_text_keeps_the_text(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n\nAccuracy: [More Information Needed]\n")
    card = saved_card(DmgalConfig(), tmp_path)
    assert "# Mine" in card and "Accuracy:" in card and "Method:" in card
