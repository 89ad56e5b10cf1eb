"""AIM: golden outputs of the released code, and properties for any weights."""

from __future__ import annotations

import peft
import pytest
import torch
from adapter_checks import awaken, check_reference_weights_must_fit, num_parameters, random_tokens
from golden_files import assert_relatively_close, read_golden
from tiny_backbones import BLOCKS, SIZE, TINY_BACKBONES

from dmgal.adapters.aim import AIMAdapter, AIMBlock, AIMConfig, AIMShape
from dmgal.errors import DmgalError

WIDTH, FRAMES = 16, 4


def block() -> AIMBlock:
    torch.manual_seed(0)
    return AIMBlock(WIDTH, num_heads=2, num_frames=FRAMES)


def tokens(videos: int = 2, num_tokens: int = 5) -> torch.Tensor:
    """Return tokens in the authors' layout, ``(N, V*T, C)``."""
    return random_tokens(videos, FRAMES, num_tokens, WIDTH).flatten(0, 1).transpose(0, 1)


def test_block_matches_released_code() -> None:
    inputs, weights, info = read_golden("aim_block")
    module = AIMBlock(48, info["heads"], info["frames"], scale=info["scale"]).eval()
    module.load_reference_state_dict(weights)
    assert_relatively_close(module(inputs["x"]), inputs["y"])


def test_parts_match_released_code() -> None:
    """Calling the adapter's parts around a block gives the authors' block."""
    inputs, weights, info = read_golden("aim_block")
    module = AIMBlock(48, info["heads"], info["frames"]).eval()
    module.load_reference_state_dict(weights)
    adapter = AIMAdapter(AIMShape(48, 12)).eval()
    adapter.load_reference_state_dict({key: tensor for key, tensor in weights.items() if "_Adapter." in key})
    attend = lambda x: module.attention(x, x, x, need_weights=False)[0]  # noqa: E731
    x = inputs["x"]
    frames_first = x.reshape(len(x), -1, info["frames"], 48).permute(2, 0, 1, 3).flatten(1, 2)
    over_frames = attend(module.attention_norm(frames_first)).unflatten(1, (len(x), -1)).permute(1, 2, 0, 3)
    x = x + adapter.temporal(over_frames.reshape(x.shape))
    x = x + adapter.spatial(attend(module.attention_norm(x)))
    normed = module.mlp_norm(x)
    hidden = module.mlp_expand(normed)
    mlp = module.mlp_contract(hidden * torch.sigmoid(1.702 * hidden))
    assert_relatively_close(x + mlp + adapter.parallel(normed), inputs["y"])


def test_unfitting_reference_weights_are_refused() -> None:
    _, weights, _ = read_golden("aim_block")
    check_reference_weights_must_fit(AIMBlock(48, 4, 8), weights)
    check_reference_weights_must_fit(
        AIMAdapter(AIMShape(48, 12)), {key: tensor for key, tensor in weights.items() if "_Adapter." in key}
    )


def test_number_of_parameters_on_vit_b16() -> None:
    assert round(12 * num_parameters(AIMAdapter(AIMShape(768, 192))) / 1e6, 2) == 10.65


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_initial_parts_add_exactly_zero(dtype: torch.dtype) -> None:
    adapter, inputs = AIMAdapter(AIMShape(WIDTH, 4)).to(dtype), tokens().to(dtype)
    assert adapter.temporal(inputs).eq(0).all() and adapter.parallel(inputs).eq(0).all()
    assert torch.equal(adapter.spatial(inputs), inputs)
    assert adapter.spatial(inputs).dtype == dtype


def test_initial_parts_add_exactly_zero_under_autocast() -> None:
    adapter, inputs = AIMAdapter(AIMShape(WIDTH, 4)), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inputs + adapter.temporal(inputs) + adapter.parallel(inputs), inputs)
        assert torch.equal(adapter.spatial(inputs), inputs)


def test_initial_block_equals_clip() -> None:
    module, inputs = block().eval(), tokens()
    normed = module.attention_norm(inputs)
    expected = inputs + module.attention(normed, normed, normed, need_weights=False)[0]
    hidden = module.mlp_expand(module.mlp_norm(expected))
    expected = expected + module.mlp_contract(hidden * torch.sigmoid(1.702 * hidden))
    assert torch.equal(module(inputs), expected)


def test_parts_compute_the_published_equations() -> None:
    adapter, inputs = awaken(AIMAdapter(AIMShape(WIDTH, 4, scale=0.25))), tokens()
    through = {name: part.up(torch.nn.functional.gelu(part.down(inputs))) for name, part in adapter.named_children()}
    assert torch.equal(adapter.temporal(inputs), through["temporal"])
    assert torch.equal(adapter.spatial(inputs), inputs + through["spatial"])
    assert torch.equal(adapter.parallel(inputs), 0.25 * through["parallel"])


def test_gradients_reach_every_parameter() -> None:
    module = awaken(block())
    module(tokens()).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def influence(module: AIMBlock, frame: int, token: int) -> torch.Tensor:
    """Return a mask ``(N, V*T)`` of the temporal pass outputs that one token of one frame changes."""
    inputs = tokens()
    moved = inputs.clone()
    moved[token, frame] += 1
    before, after = (module.adapter.temporal(module._attend_over_frames(x)) for x in (inputs, moved))
    return (after - before).abs().amax(-1).gt(1e-6)


def test_temporal_attention_mixes_only_frames_of_one_video() -> None:
    changed = influence(awaken(block()), frame=FRAMES + 1, token=3)
    expected = torch.zeros_like(changed)
    expected[3, FRAMES : 2 * FRAMES] = True
    assert torch.equal(changed, expected)


def test_block_accepts_any_number_of_videos() -> None:
    module, inputs = awaken(block()), tokens(3)
    alone = torch.cat([module(video) for video in inputs.split(FRAMES, dim=1)], dim=1)
    torch.testing.assert_close(module(inputs), alone)


@pytest.mark.parametrize("kind", ["transformers CLIP", "SigLIP", "ViT", "DeiT", "DINOv2", "DINOv2 registers"])
@pytest.mark.parametrize("earlier", [True, False], ids=["recorded before", "adapted before"])
def test_recorded_attention_maps_are_those_over_patches(kind, earlier) -> None:
    """transformers records the maps by a hook, which it sets in the first call that asks for them."""
    tower = TINY_BACKBONES[kind].make()
    tower.set_attn_implementation("eager")
    images, maps = torch.randn(2 * FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), {}
    if earlier:
        maps["own"] = tower(pixel_values=images, output_attentions=True).attentions
    model = peft.get_peft_model(tower, AIMConfig(num_frames=FRAMES)).eval()
    maps["adapted"] = model(pixel_values=images, output_attentions=True).attentions
    with model.disable_adapter():
        maps["off"] = model(pixel_values=images, output_attentions=True).attentions
    for recorded in maps.values():
        assert len(recorded) == BLOCKS
        for one, expected in zip(recorded, maps["off"], strict=True):
            torch.testing.assert_close(one, expected)


def test_incomplete_videos_are_refused() -> None:
    with pytest.raises(DmgalError, match="7 frames"):
        block()(tokens()[:, :7])


@pytest.mark.parametrize("part", ["temporal", "spatial", "parallel"])
def test_wrong_width_is_refused(part: str) -> None:
    adapter = AIMAdapter(AIMShape(WIDTH, 4))
    with pytest.raises(DmgalError, match="16 channels"):
        getattr(adapter, part)(tokens()[..., 1:])
