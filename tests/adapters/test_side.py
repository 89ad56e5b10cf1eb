"""Ladder side network beyond the common contract: gradients, states between blocks, refused uses."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from adapter_checks import awaken
from tiny_backbones import TINY_BACKBONES

from dmgal.adapters import CmgaConfig, SideConfig
from dmgal.adapters.side import SideBlock, SideShape
from dmgal.backbones import FrameEncoder
from dmgal.errors import DmgalError
from dmgal.testing import ignored_warnings

CLIP, HF = TINY_BACKBONES["open_clip visual"], TINY_BACKBONES["transformers CLIP"]
VIDEOS = CLIP.videos(4)


def awake(tiny=CLIP, **options) -> peft.PeftModel:
    model = peft.get_peft_model(tiny.make(), SideConfig(num_frames=4, **options)).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "ladder_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_no_gradient_passes_through_the_backbone():
    """The output of every block but the last has no graph, although all side blocks are trained."""
    model = awake()
    blocks = model.get_base_model().transformer.resblocks
    grads: list[bool] = []
    for block in blocks:
        block.register_forward_hook(lambda block, inputs, output: grads.append(output.requires_grad))
    model(VIDEOS).square().sum().backward()
    assert grads == [False, False, True]
    assert all(p.grad is not None for name, p in model.named_parameters() if "ladder_" in name)


def test_side_network_reads_without_a_gradient_and_order_matters():
    block = awaken(SideBlock(SideShape(8, 4, is_first=False, is_last=True)))
    tokens = torch.randn(2, 4, 5, 8, requires_grad=True)
    state = torch.randn(2, 4, 5, 4)
    result = block(tokens, state)
    result.sum().backward()
    assert tokens.grad is None
    reversed_in_time = block(tokens.flip(1), state.flip(1)).flip(1)
    assert (result - reversed_in_time).abs().max() > 1e-2


@torch.no_grad()
def test_chosen_blocks_are_read_and_the_last_one_always():
    model = awake(blocks=[0])
    assert model.peft_config["default"].blocks == [0, 2]
    names = {name.split(".side.")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".side." in name}
    assert names == {"0", "2"}
    assert (model(VIDEOS) - CLIP.make()(VIDEOS.flatten(0, 1))).abs().max() > 1e-3


@torch.no_grad()
def test_calls_leave_no_state_behind():
    model = awake()
    expected = model(VIDEOS)
    assert not model.get_base_model().dmgal_layout.carried
    encoder = FrameEncoder(model)
    encoder.advance(encoder.embed(VIDEOS.flip(0)), 2)  # an unfinished call
    assert torch.equal(model(VIDEOS), expected)


def test_resuming_in_the_middle_is_refused():
    encoder = FrameEncoder(awake())
    start = encoder.advance(encoder.embed(VIDEOS), 1)
    encoder.backbone.get_base_model().dmgal_layout.carried.clear()
    with pytest.raises(DmgalError, match="cannot resume in the middle"):
        encoder.encode(VIDEOS, start)


def test_recomputation_by_transformers_gives_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        model = awake(HF).train()
        if checkpoint:
            model.get_base_model().activation_checkpointing_enable()
        HF.features(model, VIDEOS).square().sum().backward()
        gradients.append([p.grad for name, p in model.named_parameters() if "ladder_" in name])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_recomputation_with_hooks_is_refused():
    model = awake().train()
    model.get_base_model().set_grad_checkpointing(True)
    features = model(VIDEOS)
    with pytest.raises(DmgalError, match="checkpointing"):
        features.square().sum().backward()


@torch.no_grad()
@pytest.mark.parametrize(("block", "works"), [(2, True), (0, False)])
def test_cmga_is_only_possible_after_the_last_block(block, works):
    cmga = CmgaConfig(num_frames=4, cmga_blocks=[block])
    with ignored_warnings():
        model = peft.get_peft_model(awake(), copy.deepcopy(cmga), adapter_name="cmga").eval()
    encoder = FrameEncoder(model)
    states = encoder.encode(VIDEOS[:2]), encoder.encode(VIDEOS[2:])
    if works:
        related = torch.cat(encoder.relate(*states)).flatten(0, 1)
        torch.testing.assert_close(related, model(VIDEOS, num_support=2), rtol=0, atol=1e-5)
    else:
        with pytest.raises(DmgalError, match="after the last block"):
            encoder.relate(*states)
