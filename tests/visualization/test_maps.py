"""Recordings and maps against direct computations on hooked tensors, in every kind of encoder and head."""

from __future__ import annotations

import itertools
import math

import peft
import pytest
import timm
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from dmgal.adapters import DmgalConfig
from dmgal.adapters.dmgal import CmgaAdapter, SmgaAdapter
from dmgal.backbones import FrameEncoder, StreamEncoder, load_backbone
from dmgal.episodes import FewShotRecognizer
from dmgal.episodes.heads import M2ACL, BiMHM, DmgalFT, LateFusion
from dmgal.errors import DmgalError
from dmgal.visualization import find_layers, record
from dmgal.visualization.maps import (
    attention_across,
    attention_within,
    looks,
    motion_cells,
    motion_strength,
    received_attention,
    shares,
    similarity,
)

FRAMES, SUPPORT, QUERIES = 4, 3, 2


def clips(count: int = SUPPORT + QUERIES) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, FRAMES, 3, 48, 48), dtype=torch.uint8, generator=generator)


def randomized(module: nn.Module) -> nn.Module:
    """Give every trained parameter a random value, because new adapters and gammas are zero."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def adapted(pooling: str | None = None, **options: object) -> FewShotRecognizer:
    backbone = load_backbone("tiny-clip").requires_grad_(False)
    backbone = randomized(peft.get_peft_model(backbone, DmgalConfig(num_frames=FRAMES, **options)))
    return FewShotRecognizer(FrameEncoder(backbone, pooling), BiMHM(center="video")).eval().double()


def part(recognizer: FewShotRecognizer, kind: type[nn.Module]) -> nn.Module:
    return next(module for module in recognizer.modules() if isinstance(module, kind))


def by_hand(forward: Tensor, backward: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    scale = math.sqrt(forward.shape[-1])
    pairs = zip((forward, backward), keys, strict=True)
    return sum(torch.softmax(q @ k.transpose(-1, -2) / scale, dim=-1) for q, k in pairs) / 2


@torch.no_grad()
def test_smga_maps_equal_those_of_its_hooked_input():
    recognizer = adapted()
    adapter, entered = part(recognizer, SmgaAdapter), []
    handle = adapter.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    recording = record(recognizer, clips(), "smga.0", relative=False)
    handle.remove()
    hidden = functional.gelu(adapter.down(entered[-1]) + adapter.temporal)
    reduced, aligned = adapter.reduce(hidden), adapter.align(adapter.reduce(hidden))
    zero = torch.zeros_like(reduced[:, :1])
    forward = torch.cat([aligned[:, 1:] - reduced[:, :-1], zero], dim=1)
    backward = torch.cat([zero, aligned[:, :-1] - reduced[:, 1:]], dim=1)
    torch.testing.assert_close(recording.motion, torch.stack([forward, backward]), rtol=0, atol=1e-6)
    expected = by_hand(forward, backward, (forward, backward))
    torch.testing.assert_close(attention_within(recording), expected[-1], rtol=0, atol=1e-6)
    patches = rearrange(forward[:, :, 1:], "v t (h w) c -> (v t) c h w", h=6)
    pooled = rearrange(functional.max_pool2d(patches, 2), "(v t) c h w -> v t (h w) c", t=FRAMES)
    cells = motion_cells(recording, direction="forward")
    torch.testing.assert_close(similarity(cells[:, :-1], cells[:, 1:]), pooled[:, :-1] @ pooled[:, 1:].mT)
    received = received_attention(recording)
    torch.testing.assert_close(received.flatten(1).mean(dim=1), torch.ones(FRAMES).double())
    assert received.flatten().std() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("pooling", [None, "patch_mean"])
def test_cmga_maps_equal_those_of_the_states(pooling):
    recognizer, videos = adapted(pooling), clips()
    recording = record(recognizer, videos, num_support=SUPPORT)
    assert recording.layer == "cmga.3" and recording.class_token_only == (pooling is None)
    adapter, entered = part(recognizer, CmgaAdapter), []
    handle = adapter.down.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    recognizer.encode(videos)
    handle.remove()
    forward, backward = (adapter.normalization(one) for one in adapter.motion(adapter.hidden(entered[0])))
    keys = [rearrange(one[:SUPPORT], "s t n c -> t (s n) c") for one in (forward, backward)]
    expected = by_hand(forward[-1], backward[-1], keys)
    actual = rearrange(attention_across(recording), "t n s m -> t n (s m)")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    rows = expected[:, :1] if pooling is None else expected[:, 1:]
    share = rearrange(rows.mean(dim=1), "t (s n) -> t s n", s=SUPPORT).sum(dim=-1)
    torch.testing.assert_close(shares(recording, [0, 1, 1]), torch.stack([share[:, 0], share[:, 1:].sum(1)], dim=1))
    assert looks(recording).shape == (SUPPORT, FRAMES, 6, 6)


@torch.no_grad()
@pytest.mark.parametrize(("head", "layer"), [(M2ACL, "tdsam"), (DmgalFT, "s_mga"), (DmgalFT, "c_mga")])
def test_attention_of_heads_times_values_is_their_output(head, layer):
    encoder = FrameEncoder(load_backbone("tiny-clip"), "map")
    options = {"width": 16} if head is M2ACL else {"num_frames": FRAMES}
    recognizer = FewShotRecognizer(encoder, randomized(head(channels=encoder.width, **options))).eval()
    videos, outputs = clips(), []
    module = find_layers(recognizer)[layer]
    attention = {"tdsam": "motion_attention", "s_mga": "self_attention", "c_mga": "cross_attention"}[layer]
    owner = getattr(recognizer.head, attention)
    owner.motion.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    recording = record(recognizer, videos, layer, num_support=SUPPORT, relative=False)
    features = outputs[0]
    assert module.is_in_head and recording.grid == (6, 6)
    if layer == "c_mga":
        state = owner.prepare(features)
        support, query = state.split([SUPPORT, QUERIES])
        _, related = owner.relate(support, query)
        attended = rearrange(attention_across(recording), "t n s m -> t n (s m)")
        values = rearrange(support["values"], "s t p c -> t (s p) c")
        expected = rearrange((related[-1] - query["residual"][-1]) / owner.gamma_cross, "t c h w -> t (h w) c")
    else:
        values = owner.values(rearrange(features, "v t c h w -> v c t h w")[-1:])[0] if layer == "tdsam" else None
        values = owner.values(features[-1]) if values is None else rearrange(values, "c t h w -> t c h w")
        values = rearrange(values, "t c h w -> t (h w) c")
        attended = attention_within(recording)
        expected = rearrange(((owner(features) - features) / owner.gamma)[-1], "t c h w -> t (h w) c")
    torch.testing.assert_close(attended @ values, expected, rtol=1e-4, atol=1e-4)


CELLS = (0, 1, 2, 5, 8, 7, 6, 3)


def test_a_moving_patch_lights_up_its_cell_and_the_next_one():
    video = torch.full((1, len(CELLS), 3, 48, 48), 90, dtype=torch.uint8)
    for t, cell in enumerate(CELLS):
        top, left = 16 * (cell // 3), 16 * (cell % 3)
        video[0, t, :, top : top + 8, left : left + 8] = torch.tensor([250, 30, 60], dtype=torch.uint8).view(3, 1, 1)
    recognizer = FewShotRecognizer(FrameEncoder(load_backbone("tiny-clip")), BiMHM())
    recording = record(recognizer, video)
    assert recording.layer == "embedding"
    values = motion_cells(recording)[0]
    for t, (cell, following) in enumerate(itertools.pairwise(CELLS)):
        cross = similarity(values[t], values[t + 1])
        assert cross[cell, following] > 0.9 * cross.max()
        if 0 < t < len(CELLS) - 2:
            assert divmod(int(cross.argmax()), 9) == (cell, following)
        bystanders = set(range(9)) - {*CELLS[max(0, t - 1) : t + 3]}
        assert cross[sorted(bystanders)].abs().max() < 1e-6 * cross.max()
    strength = motion_strength(recording)[0]
    assert strength[2, 0, 4] > 1 and strength[2, 3:].amax() < 1


@pytest.mark.slow
def test_still_videos_have_no_relative_motion():
    still = clips()[:1, :1].expand(-1, FRAMES, -1, -1, -1)
    recognizer = adapted()
    for layer in ("embedding", "block.2", "smga.0", "cmga.3"):
        plain = record(recognizer, still, layer, relative=False).motion.abs().max()
        assert record(recognizer, still, layer).motion.abs().max() <= 1e-5 * plain
        assert plain > 0.01 or layer == "embedding"


@pytest.mark.slow
def test_every_layer_of_every_encoder_can_be_recorded():
    small = {"pretrained": False, "num_classes": 0}
    resnet = FrameEncoder(timm.create_model("resnet10t", **small), "map")
    expert = adapted(cmga_blocks=[]).encoder
    fused = StreamEncoder([expert, expert], adapted=[False, True])
    beside = StreamEncoder([FrameEncoder(timm.create_model("vit_tiny_patch16_224", depth=1, **small)), expert])
    names = {}
    for encoder, head in ((resnet, BiMHM()), (fused, LateFusion(fused.widths)), (beside, LateFusion(beside.widths))):
        recognizer = FewShotRecognizer(encoder, head).eval()
        layers = find_layers(recognizer)
        names[encoder] = [*layers]
        side = encoder.image_size[0]
        videos = torch.randint(0, 256, (2, 3, 3, side, side), dtype=torch.uint8)
        if encoder is not resnet:
            videos = torch.randint(0, 256, (2, FRAMES, 3, side, side), dtype=torch.uint8)
        for name in layers if encoder is not beside else ["block.0", "expert.smga.1"]:
            recording = record(recognizer, videos, name, relative=False)
            assert recording.patches.shape[1:4] == (2, videos.shape[1], recording.grid[0] * recording.grid[1])
            assert recording.motion.abs().max() > 0, name
    assert names[fused].count("smga.3") == 1 and "expert.smga.3" in names[beside]


@pytest.mark.slow
def test_the_adapted_stream_is_recorded():
    expert = adapted(cmga_blocks=[]).encoder
    alone = FewShotRecognizer(expert, BiMHM())
    fused = StreamEncoder([expert, expert], adapted=[False, True])
    both = FewShotRecognizer(fused, LateFusion(fused.widths))
    for layer in ("block.3", "smga.3"):
        recordings = [record(recognizer, clips(), layer, relative=False) for recognizer in (alone, both)]
        torch.testing.assert_close(recordings[1].motion, recordings[0].motion)


class OtherEncoder(nn.Module):
    """An encoder without patches."""


@pytest.mark.parametrize(
    ("layer", "videos", "words"),
    [
        ("smga.7", clips(1), "no such layer"),
        ("smga.0", clips(1)[:, :1], "at least two frames"),
        ("smga.0", clips(1).float(), "no videos"),
        ("smga.0", clips(1)[0], "no videos"),
    ],
)
def test_mistakes_have_clear_messages(layer, videos, words):
    with pytest.raises(DmgalError, match=words):
        record(adapted(), videos, layer)


def test_an_encoder_without_a_grid_is_refused():
    with pytest.raises(DmgalError, match="no grid"):
        find_layers(FewShotRecognizer(OtherEncoder(), BiMHM()))
