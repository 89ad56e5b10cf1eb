"""Blocks before the first trained layer run once, and are counted again if other parameters are trained."""

from __future__ import annotations

import peft
import pytest
import torch
from two_pass_cases import FEATURE_HEADS, backbone, of_adapter, of_resnet, recognizer, task

from dmgal.adapters import SmgaConfig
from dmgal.backbones import FrameEncoder
from dmgal.episodes.two_pass.recompute import count_frozen_blocks
from dmgal.episodes.two_pass.two_pass import TwoPass


def smga_after(block):
    model = peft.get_peft_model(backbone(), SmgaConfig(num_frames=4, smga_blocks=[block]))
    return recognizer(FrameEncoder(model, "patch_mean"), FEATURE_HEADS["BiMHM"]())


@pytest.mark.parametrize("block", [0, 1, 2])
def test_blocks_before_first_adapter_are_frozen(block):
    model = smga_after(block)
    assert count_frozen_blocks(model.encoder, task(0).support[:1]) == block


@pytest.mark.parametrize("adapter", ["Cmga two before the end", None])
def test_all_blocks_up_to_task_layer_are_frozen_if_only_the_head_is_trained(adapter):
    encoder = FrameEncoder(backbone(adapter)).requires_grad_(False)
    model = recognizer(encoder, FEATURE_HEADS["TRX"]())
    last = encoder.first_task_block if adapter else encoder.spec.num_blocks
    assert count_frozen_blocks(model.encoder, task(0).support[:1]) == last


@pytest.mark.parametrize("adapter", ["DMGAL", "Cmga two before the end", None])
def test_resumed_encoding_is_bit_identical(adapter):
    model, videos = recognizer(FrameEncoder(backbone(adapter)), FEATURE_HEADS["BiMHM"]()), task(0).support
    expected = model.encode(videos)
    limit = model.encoder.first_task_block if adapter else model.encoder.spec.num_blocks
    start = model.encoder.embed(videos)
    for block in range(limit + 1):
        start = model.encoder.advance(start, block)
        states = model.encode(videos, start)
        assert states.keys() == expected.keys()
        assert all(torch.equal(states[name], tensor) for name, tensor in expected.items())


def test_no_block_is_frozen_if_the_first_is_trained():
    for model in (of_resnet(), recognizer(FrameEncoder(backbone(trainable=True)), FEATURE_HEADS["BiMHM"]())):
        assert count_frozen_blocks(model.encoder, task(0).support[:1]) == 0


def test_random_blocks_are_not_skipped():
    model = of_adapter("Smga").requires_grad_(False)
    block = model.encoder._model.get_submodule(model.encoder.spec.block_names()[1])
    block.register_forward_hook(lambda block, inputs, output: torch.nn.functional.dropout(output, 0.1))
    before = torch.get_rng_state()
    assert count_frozen_blocks(model.encoder, task(0).support[:1]) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_newly_trained_block_gets_gradient():
    model, episode = smga_after(1), task(0)
    two_pass = TwoPass(model, 3)
    two_pass.backward([episode], lambda output, _: output.logits.square().sum())
    weight = model.encoder._model.get_submodule(model.encoder.spec.block_names()[0]).mlp.c_fc.weight
    assert weight.grad is None
    weight.requires_grad_(True)
    two_pass.backward([episode], lambda output, _: output.logits.square().sum())
    assert weight.grad is not None and weight.grad.abs().max() > 0
