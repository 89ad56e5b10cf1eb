"""Streams give the features of their encoders alone, and share the blocks before the first adapter."""

from __future__ import annotations

import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES
from transformers import ResNetConfig, ResNetModel

from dmgal.adapters import DmgalConfig
from dmgal.backbones import FrameEncoder, StreamEncoder
from dmgal.errors import DmgalError


def random_videos(size, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 4, 3, *size), generator=generator, dtype=torch.uint8)


def with_smga(backbone, blocks=(1,)):
    torch.manual_seed(0)
    model = peft.get_peft_model(backbone, DmgalConfig(smga_blocks=list(blocks), cmga_blocks=[], num_frames=4))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def resnet():
    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()


@pytest.mark.parametrize("name", TINY_BACKBONES)
def test_frozen_and_adapted_streams_equal_their_encoders(name):
    backbone, alone = TINY_BACKBONES[name].make(), TINY_BACKBONES[name].make()
    encoder = FrameEncoder(with_smga(backbone))
    videos = random_videos(TINY_BACKBONES[name].size)
    with torch.no_grad():
        frozen, adapted = FrameEncoder(alone).encode(videos)["features"], encoder.encode(videos)["features"]
        streams = StreamEncoder([encoder, encoder], adapted=[False, True])
        features = streams.encode(videos)["features"]
    assert streams.widths == (frozen.shape[-1], adapted.shape[-1]) and not torch.equal(frozen, adapted)
    assert torch.equal(features, torch.cat([frozen, adapted], dim=-1))


def test_blocks_before_the_first_adapter_run_once():
    encoder = FrameEncoder(with_smga(TINY_BACKBONES["ViT"].make(), blocks=[2]))
    counts = [0, 0, 0]
    for index, block in enumerate(encoder._blocks()):

        def count(*_, index=index):
            counts[index] += 1

        block.register_forward_hook(count)
    StreamEncoder([encoder, encoder], adapted=[False, True]).encode(random_videos((32, 32)))
    assert counts == [1, 1, 2]


def test_adapter_outside_the_blocks_is_not_shared():
    config = peft.LoraConfig(target_modules=["visual_projection", "q_proj"])
    encoder = FrameEncoder(peft.get_peft_model(TINY_BACKBONES["transformers CLIP whole"].make(), config))
    assert encoder.first_adapted_block is None


def test_expert_beside_another_backbone_gets_resized_videos():
    tiny, large = FrameEncoder(with_smga(TINY_BACKBONES["ViT"].make())), FrameEncoder(resnet())
    streams = StreamEncoder([large, tiny])
    assert streams.image_size == (224, 224)
    videos = torch.full((1, 4, 3, 224, 224), 120, dtype=torch.uint8)  # resizing keeps a uniform color
    with torch.no_grad():
        alone = tiny.encode(torch.full((1, 4, 3, 32, 32), 120, dtype=torch.uint8))["features"]
        features = streams.encode(videos)["features"]
    assert torch.allclose(features[..., -alone.shape[-1] :], alone) and features.shape[-1] == streams.feature_width


def test_normalization_of_every_stream_counts():
    streams = StreamEncoder([FrameEncoder(resnet()), FrameEncoder(TINY_BACKBONES["open_clip whole"].make())])
    assert streams.mean.shape == streams.std.shape == (6,)


@pytest.mark.parametrize("pooling, cmga, message", [("map", [], "map"), (None, [-1], "task layer")])
def test_maps_and_task_layers_are_refused(pooling, cmga, message):
    model = peft.get_peft_model(TINY_BACKBONES["ViT"].make(), DmgalConfig(cmga_blocks=cmga, num_frames=4))
    with pytest.raises(DmgalError, match=message):
        StreamEncoder([FrameEncoder(model, pooling)])


def test_normalized_videos_are_refused():
    streams = StreamEncoder([FrameEncoder(TINY_BACKBONES["ViT"].make())])
    with pytest.raises(DmgalError, match=r"torch\.uint8"):
        streams.encode(torch.zeros(1, 4, 3, 32, 32))


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's, of a LayerNorm
@pytest.mark.parametrize(
    "config", [peft.LNTuningConfig(target_modules=["layernorm_before"]), peft.LoraConfig(target_modules=["q_proj"])]
)
def test_every_method_of_peft_is_switched_off_in_the_frozen_stream(config):
    encoder = FrameEncoder(peft.get_peft_model(TINY_BACKBONES["ViT"].make(), config))
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3
    videos = random_videos((32, 32))
    with torch.no_grad():
        features = StreamEncoder([encoder, encoder], adapted=[False, True]).encode(videos)["features"]
        frozen = FrameEncoder(TINY_BACKBONES["ViT"].make()).encode(videos)["features"]
        adapted = encoder.encode(videos)["features"]
    assert torch.equal(features, torch.cat([frozen, adapted], dim=-1)) and not torch.equal(frozen, adapted)
    assert any(parameter.requires_grad for parameter in encoder.parameters())
