"""LoRA in text towers: nothing changes at first, only the LoRA is trained, and a saved one gives the same texts."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch
from text_towers import save_transformers

from dmgal.adapters.text_lora import TextTower, add_text_lora, load_text_lora, text_layers
from dmgal.backbones import encode_class_names, load_text_encoder
from dmgal.backbones.open_clip_vit import text_encoder
from dmgal.errors import DmgalError

OTHERS = ("CLIP", "Siglip", "CustomTextCLIP")
NAMES = ["red disc", "blue square", "cross"]


@pytest.fixture(params=["tiny-clip", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def encoder(request, tmp_path):
    if request.param == "tiny-clip":
        return load_text_encoder("tiny-clip")
    if request.param == "CustomTextCLIP":
        torch.manual_seed(0)
        text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
        return text_encoder(open_clip.CustomTextCLIP(16, vision, text), open_clip.SimpleTokenizer(context_length=24))
    save_transformers(tmp_path, request.param)
    return load_text_encoder(str(tmp_path))


def disturb(model):
    """Give a LoRA an effect."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def test_texts_are_bit_identical_at_first_and_gradients_reach_the_lora_alone(encoder):
    bare, layers = encode_class_names(encoder, NAMES), text_layers(encoder)
    adapted = add_text_lora(encoder, rank=2)
    assert torch.equal(encode_class_names(adapted, NAMES).features, bare.features)
    tower = TextTower(adapted).train()
    features = tower(bare)
    torch.testing.assert_close(features, bare.features, rtol=1e-5, atol=1e-6)
    disturb(tower)
    (tower(bare) * torch.randn_like(features)).sum().backward()
    reached = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    lora = {name for name, _ in tower.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    assert reached == lora == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert len(lora) >= 2 * len(layers) and not tower.model.training


@pytest.mark.slow
def test_a_saved_lora_gives_the_same_texts(encoder, tmp_path):
    again = load_text_encoder("tiny-clip") if encoder.name == "tiny-clip" else None
    adapted = add_text_lora(encoder, rank=2)
    disturb(adapted.model)
    texts = encode_class_names(adapted, NAMES)
    adapted.model.save_pretrained(str(tmp_path / "text"), save_embedding_layers=False)
    if again is not None:
        loaded = load_text_lora(again, str(tmp_path / "text"))
        assert torch.equal(encode_class_names(loaded, NAMES).features, texts.features)
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with adapted.model.disable_adapter():
        assert not torch.equal(encode_class_names(adapted, NAMES).features, texts.features)


def test_the_frozen_weights_of_attention_never_change():
    """PEFT adds the LoRA to them and subtracts it in each call, which would leave rounding errors."""
    encoder = load_text_encoder("tiny-clip")
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    texts = encode_class_names(encoder, NAMES)
    adapted = add_text_lora(encoder, rank=2)
    for _ in range(2):
        disturb(adapted.model)
        TextTower(adapted)(texts)
    with adapted.model.disable_adapter():
        assert torch.equal(encode_class_names(adapted, NAMES).features, texts.features)
    after = {
        name.replace(".base_layer", ""): value for name, value in adapted.model.base_model.model.state_dict().items()
    }
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []


def test_a_tower_without_blocks_is_refused():
    encoder = load_text_encoder("tiny-clip")
    model = torch.nn.Linear(2, 2)
    with pytest.raises(DmgalError, match="LoRA is not supported in this text tower"):
        add_text_lora(replace(encoder, model=model), rank=2)
