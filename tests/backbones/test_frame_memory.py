"""Remembered frames: the same features and gradients, while frozen blocks see each frame only once."""

from __future__ import annotations

import peft
import pytest
import torch
from tiny_backbones import TINY_BACKBONES

from dmgal.adapters import DmgalConfig, SideConfig
from dmgal.backbones import FrameEncoder, FrameMemory
from dmgal.errors import DmgalError


def random_videos(size, count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 4, 3, *size), generator=generator, dtype=torch.uint8)


def late_smga(backbone, **config):
    """Return the backbone in float64, so that batches of one frame give the same features as larger ones."""
    torch.manual_seed(0)
    config = {"smga_blocks": [2], "cmga_blocks": [], "num_frames": 4, **config}
    model = peft.get_peft_model(backbone.requires_grad_(False), DmgalConfig(**config)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def gradients(encoder, videos):
    state = encoder.encode(videos)
    sum(tensor.square().sum() for tensor in state.values()).backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return state, found


@pytest.mark.parametrize("name", ["ViT", "timm ViT registers", "hand-written"])
@pytest.mark.parametrize("adapter", [{}, {"smga_blocks": [], "cmga_blocks": [2]}], ids=["smga", "cmga"])
def test_states_and_gradients_are_those_without_a_memory(name, adapter):
    encoder = FrameEncoder(late_smga(TINY_BACKBONES[name].make(), **adapter))
    videos = random_videos(TINY_BACKBONES[name].size)
    expected = gradients(encoder, videos)
    encoder.frame_memory = FrameMemory(encoder, 1e9)
    for _ in range(2):
        torch.testing.assert_close(gradients(encoder, videos), expected)
    assert len(encoder.frame_memory) == 12


def count_runs(encoder, index=0):
    counts = []
    encoder._blocks()[index].register_forward_hook(lambda block, inputs, output: counts.append(len(inputs[0])))
    return counts


def count_computations(encoder):
    """Count the calls of the last block's parts, which a block that returns a known output does not make."""
    counts = []
    part = next(module for module in encoder._blocks()[-1].modules() if isinstance(module, torch.nn.LayerNorm))
    part.register_forward_hook(lambda *_: counts.append(1))
    return counts


def test_frozen_blocks_see_each_frame_once_whichever_video_it_is_in():
    encoder = FrameEncoder(late_smga(TINY_BACKBONES["ViT"].make()))
    videos = random_videos((32, 32))
    encoder.frame_memory = FrameMemory(encoder, 1e9)
    counts = count_runs(encoder)
    first = encoder.encode(videos)["features"]
    again = encoder.encode(videos.flip(0))["features"]
    encoder.encode(videos[:, [2, 1, 3, 0]])
    assert counts == [1] * 12
    torch.testing.assert_close(first.flip(0), again, rtol=0, atol=1e-12)  # products depend on the place in a batch


def test_a_full_memory_changes_no_bit():
    encoder = FrameEncoder(late_smga(TINY_BACKBONES["ViT"].make()).float())
    videos = random_videos((32, 32))
    features = []
    for size in (0, 3e4, 1e9):
        encoder.frame_memory = memory = FrameMemory(encoder, size)
        features += [encoder.encode(videos)["features"], encoder.encode(videos)["features"]]
        assert memory.used_bytes <= size
    assert all(torch.equal(features[0], other) for other in features[1:])


def side_network(backbone, **config):
    """Return the backbone with a side network whose result is not zero."""
    torch.manual_seed(0)
    model = peft.get_peft_model(backbone.requires_grad_(False), SideConfig(num_frames=4, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", ["ViT", "open_clip visual", "DINOv2", "hand-written (N,B,C)"])
def test_side_network_runs_no_block_for_known_frames(name):
    tiny = TINY_BACKBONES[name]
    videos = random_videos(tiny.size)
    expected = gradients(FrameEncoder(side_network(tiny.make()).double()), videos)
    encoder = FrameEncoder(side_network(tiny.make()).double())
    encoder.frame_memory = memory = FrameMemory(encoder, 1e9)
    counts = count_computations(encoder)
    for _ in range(2):
        torch.testing.assert_close(gradients(encoder, videos), expected)
    assert len(counts) == 12 and len(memory) == 12 and memory.reads == (0, 1, 2)


def test_memory_of_a_side_network_changes_no_bit():
    videos, results = random_videos((32, 32)), []
    for size in (0, 1e9):
        encoder = FrameEncoder(side_network(TINY_BACKBONES["ViT"].make(), blocks=[1]))
        encoder.frame_memory = memory = FrameMemory(encoder, size)
        results += [gradients(encoder, videos), gradients(encoder, videos)]
    assert memory.reads == (1, 2)
    for state, found in results[1:]:
        assert torch.equal(state["features"], results[0][0]["features"])
        assert all(torch.equal(found[name], gradient) for name, gradient in results[0][1].items())


def test_modes_and_types_are_remembered_apart():
    encoder = FrameEncoder(late_smga(TINY_BACKBONES["ViT"].make()).float()).train()
    videos = random_videos((32, 32))
    encoder.frame_memory = memory = FrameMemory(encoder, 1e9)
    encoder.encode(videos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder.encode(videos)
    encoder.encode((videos / 255 - encoder.mean) / encoder.std)
    assert len(memory) == 36 and encoder.training and encoder._blocks()[0].training


def trained_embeddings():
    model = late_smga(TINY_BACKBONES["ViT"].make())
    model.get_submodule("base_model.model.embeddings").requires_grad_(True)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: late_smga(TINY_BACKBONES["ViT"].make(), smga_blocks=[0]),
        lambda: TINY_BACKBONES["ViT"].make().requires_grad_(True),
        trained_embeddings,
    ],
    ids=["first block", "trainable", "before the blocks"],
)
def test_what_is_trained_from_the_start_is_refused(make):
    with pytest.raises(DmgalError, match="No frozen blocks come before"):
        FrameMemory(FrameEncoder(make()), 1e9)
