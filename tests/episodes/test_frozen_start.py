"""Blocks before the first trained layer run once, and are found again if other parameters are trained."""

from __future__ import annotations

import peft
import torch
from two_pass_cases import FEATURE_HEADS, backbone, of_adapter, of_resnet, recognizer, task

from dmgal.adapters import SmgaConfig
from dmgal.backbones import FrameEncoder
from dmgal.episodes.two_pass.recompute import FrozenStart
from dmgal.episodes.two_pass.two_pass import TwoPass


def smga_after(block):
    model = peft.get_peft_model(backbone(), SmgaConfig(num_frames=4, smga_blocks=[block]))
    return recognizer(FrameEncoder(model, "patch_mean"), FEATURE_HEADS["BiMHM"]())


def test_start_ends_at_first_adapter():
    videos = task(0).support
    for block in range(2):
        model = smga_after(block)
        start = FrozenStart.of(model, videos[:1])
        assert len(start.blocks) == block + 1
        result = start.result(model, videos)
        with start.known(result):
            states = model.encode(videos)
        for name, tensor in model.encode(videos).items():
            torch.testing.assert_close(states[name], tensor, rtol=0, atol=1e-12)
        assert all("forward" not in vars(module) for module in model.modules())


def test_no_start_if_first_block_is_trained():
    for model in (of_resnet(), recognizer(FrameEncoder(backbone(trainable=True)), FEATURE_HEADS["BiMHM"]())):
        start = FrozenStart.of(model, task(0).support[:1])
        assert not start.blocks and start.result(model, task(0).support) is None


def test_random_blocks_are_not_skipped():
    model = of_adapter("Smga")
    block = model.encoder.spec.block_names()[0]
    inner = model.encoder._model.get_submodule(block)
    forward = inner.forward
    inner.forward = lambda tokens, **options: torch.nn.functional.dropout(forward(tokens, **options), 0.1)
    assert not FrozenStart.of(model, task(0).support[:1]).blocks


def test_newly_trained_block_gets_gradient():
    model, episode = smga_after(1), task(0)
    two_pass = TwoPass(model, 3)
    two_pass.backward([episode], lambda output, _: output.logits.square().sum())
    weight = model.encoder._model.get_submodule(model.encoder.spec.block_names()[0]).mlp.c_fc.weight
    assert weight.grad is None
    weight.requires_grad_(True)
    two_pass.backward([episode], lambda output, _: output.logits.square().sum())
    assert weight.grad is not None and weight.grad.abs().max() > 0
