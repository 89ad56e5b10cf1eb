"""Tests of the encoder: without adapters, its features are those of the backbone."""

from __future__ import annotations

import pytest
import torch
from tiny_backbones import TINY_BACKBONES

from dmgal.backbones import FrameEncoder, find_spec, load_backbone, make_encoder
from dmgal.errors import DmgalError


@pytest.fixture(scope="module")
def tiny_clip():
    return load_backbone("tiny-clip").requires_grad_(False)


@pytest.fixture
def clips():
    return torch.randint(0, 256, (2, 3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalized(clips, spec):
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.mean, spec.std))
    return (clips / 255 - mean) / std


def test_own_pooling_equals_the_backbone(tiny_clip, clips):
    encoder = FrameEncoder(tiny_clip)
    expected = tiny_clip(normalized(clips, encoder.spec).flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(encoder.encode(clips)["features"], expected, rtol=0, atol=1e-5)


def test_floating_point_input_is_not_normalized(tiny_clip, clips):
    encoder = FrameEncoder(tiny_clip)
    features = encoder.encode(normalized(clips, encoder.spec))["features"]
    torch.testing.assert_close(features, encoder.encode(clips)["features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [(None, (128,)), ("patch_mean", (128,)), ("cls+patch_mean", (256,)), ("map", (96, 6, 6))],
)
def test_pooling_output_shapes(tiny_clip, clips, pooling, shape):
    assert FrameEncoder(tiny_clip, pooling).encode(clips)["features"].shape == (2, 3, *shape)


def test_poolings_are_consistent(tiny_clip, clips):
    """Check that the patch mean is the projected mean of the map, and that the pair concatenates the two features."""
    own, mean, pair, maps = (
        FrameEncoder(tiny_clip, pooling).encode(clips)["features"]
        for pooling in (None, "patch_mean", "cls+patch_mean", "map")
    )
    torch.testing.assert_close(maps.mean((-2, -1)) @ tiny_clip.proj, mean, rtol=0, atol=1e-5)
    assert torch.equal(pair, torch.cat([own, mean], -1))


def test_map_keeps_patch_positions(tiny_clip):
    """Check that a change in one corner of the image changes the features of that corner most."""
    clip = torch.full((1, 1, 3, 48, 48), 100, dtype=torch.uint8)
    changed = clip.clone()
    changed[..., :8, 40:] = 255
    encoder = FrameEncoder(tiny_clip, "map")
    difference = (encoder.encode(changed)["features"] - encoder.encode(clip)["features"]).norm(dim=2)[0, 0]
    assert difference.argmax() == 5  # first row, last column


def test_state_without_task_layer_is_features_of_each_video(tiny_clip, clips):
    encoder = FrameEncoder(tiny_clip)
    together = encoder.encode(clips)["features"]
    for video in range(2):
        alone = encoder.encode(clips[video : video + 1])["features"]
        torch.testing.assert_close(alone[0], together[video], rtol=0, atol=1e-5)


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


def test_unknown_pooling_error_lists_valid_ones(tiny_clip):
    with pytest.raises(DmgalError, match="'patch_mean'"):
        FrameEncoder(tiny_clip, "max")


def test_unrecognized_backbone_error_lists_stacks():
    blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3))
    with pytest.raises(DmgalError, match=r"blocks \(3 x Sequential, width 2\)"):
        find_spec(torch.nn.ModuleDict({"blocks": blocks}))


@pytest.mark.parametrize("pooling", [None, "patch_mean", "cls+patch_mean", "map"])
def test_feature_width_is_known_before_encoding(pooling):
    encoder = FrameEncoder(load_backbone("tiny-clip"), pooling)
    video = torch.zeros(1, 1, 3, *encoder.image_size, dtype=torch.uint8)
    with torch.no_grad():
        assert encoder.feature_width == encoder.encode(video)["features"].shape[2]


def test_checkpoint_blocks_requires_blocks() -> None:
    from transformers import ResNetConfig, ResNetModel

    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"))
    with pytest.raises(DmgalError, match="no blocks"):
        make_encoder(network, checkpoint_blocks=True)
    assert make_encoder(TINY_BACKBONES["ViT"].make(), checkpoint_blocks=True).checkpoint_blocks
