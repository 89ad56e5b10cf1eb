"""ST-Adapter: golden outputs of the released code, and properties for any weights."""

from __future__ import annotations

import peft
import pytest
import torch
from adapter_checks import (
    awaken,
    check_every_parameter_is_read,
    check_identity_at_the_start,
    check_reference_weights_must_fit,
    check_videos_are_apart,
    check_wrong_tokens_are_refused,
    num_parameters,
    random_tokens,
)
from golden_files import assert_relatively_close, read_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_backbones import FRAMES, TINY_BACKBONES

from dmgal.adapters import STAdapterConfig
from dmgal.adapters.st_adapter import STAdapter, STAdapterShape
from dmgal.errors import DmgalError

OVER_TIME = STAdapterShape(width=12, bottleneck=6, num_prefix_tokens=1, grid=(2, 3))
OVER_SPACE = STAdapterShape(width=12, bottleneck=6, num_prefix_tokens=1, grid=(2, 3), kernel=(3, 3, 3))
SHAPES = pytest.mark.parametrize("shape", [OVER_TIME, OVER_SPACE], ids=["over time", "over time and space"])


def tokens(videos: int = 2, frames: int = 4) -> torch.Tensor:
    return random_tokens(videos, frames, num_tokens=7, width=12)


def test_adapter_matches_released_code() -> None:
    inputs, weights, info = read_golden("st_adapter")
    adapter = STAdapter(STAdapterShape(width=48, bottleneck=24, num_prefix_tokens=1, grid=(4, 4))).eval()
    adapter.load_reference_state_dict(weights)
    result = adapter(inputs["x"].unflatten(0, (-1, info["frames"])))
    assert_relatively_close(result.flatten(0, 1), inputs["y"])


def test_unfitting_reference_weights_are_refused() -> None:
    adapter = STAdapter(STAdapterShape(width=48, bottleneck=24, num_prefix_tokens=1, grid=(4, 4)))
    check_reference_weights_must_fit(adapter, read_golden("st_adapter")[1])


def test_number_of_parameters_on_vit_b16() -> None:
    one = num_parameters(STAdapter(STAdapterShape(width=768, bottleneck=384, num_prefix_tokens=1, grid=(14, 14))))
    assert round(12 * one / 1e6, 2) == 7.11
    assert round(24 * one / 1e6, 2) == 14.22


@SHAPES
def test_adapter_meets_the_module_contract(shape: STAdapterShape) -> None:
    check_identity_at_the_start(STAdapter(shape), tokens())
    check_every_parameter_is_read(STAdapter(shape), tokens())
    check_videos_are_apart(STAdapter(shape), tokens(3))
    check_wrong_tokens_are_refused(STAdapter(shape), tokens())


def test_training_changes_the_zero_convolution() -> None:
    """The convolution alone is zero, so the first gradient reaches it."""
    adapter = STAdapter(OVER_TIME)
    adapter(tokens()).square().sum().backward()
    assert adapter.convolution.weight.grad.abs().min() > 0


@SHAPES
def test_prefix_tokens_pass_unchanged_and_change_nothing(shape: STAdapterShape) -> None:
    adapter, clip = awaken(STAdapter(shape)), tokens()
    assert torch.equal(adapter(clip)[:, :, 0], clip[:, :, 0])
    other = clip.clone()
    other[:, :, 0] += 1
    torch.testing.assert_close(adapter(other)[:, :, 1:], adapter(clip)[:, :, 1:])


@SHAPES
@pytest.mark.parametrize("num_prefix_tokens", [0, 2])
def test_adapter_accepts_any_number_of_prefix_tokens(shape: STAdapterShape, num_prefix_tokens: int) -> None:
    other = STAdapterShape(shape.width, shape.bottleneck, num_prefix_tokens, shape.grid, shape.kernel)
    adapter, reference = awaken(STAdapter(other)), awaken(STAdapter(shape))
    reference.load_state_dict(adapter.state_dict())
    clip = random_tokens(2, 4, num_tokens=6 + num_prefix_tokens, width=12)
    patches = clip[:, :, num_prefix_tokens:]
    expected = reference(torch.cat([torch.zeros_like(patches[:, :, :1]), patches], dim=2))[:, :, 1:]
    torch.testing.assert_close(adapter(clip)[:, :, num_prefix_tokens:], expected)


@SHAPES
def test_delta_equals_the_change_of_forward(shape: STAdapterShape) -> None:
    adapter, clip = awaken(STAdapter(shape)), tokens()
    delta = adapter.delta(clip)
    assert delta.shape == clip.shape and delta[:, :, 0].eq(0).all() and delta[:, :, 1:].ne(0).any()
    assert torch.equal(clip + delta, adapter(clip))


@given(frames=st.integers(1, 6), kernel=st.sampled_from([(1, 1, 1), (3, 1, 1), (5, 1, 1), (3, 3, 3), (1, 3, 5)]))
@settings(max_examples=20)
def test_adapter_computes_the_published_equation(frames: int, kernel: tuple[int, int, int]) -> None:
    adapter, clip = awaken(STAdapter(STAdapterShape(12, 6, 1, (2, 3), kernel))), tokens(frames=frames)
    volume = adapter.down(clip[:, :, 1:]).unflatten(2, (2, 3)).permute(0, 4, 1, 2, 3)
    mixed = adapter.convolution(volume).permute(0, 2, 3, 4, 1).flatten(2, 3)
    torch.testing.assert_close(adapter(clip)[:, :, 1:], clip[:, :, 1:] + adapter.up(mixed))


@torch.no_grad()
def test_block_with_both_adapters_computes_the_published_equations() -> None:
    """``y = x + first``, ``z = y + attention``, ``z' = z + second``, and the block returns ``z' + MLP(z')``."""
    tiny = TINY_BACKBONES["timm ViT"]
    config = STAdapterConfig(num_frames=FRAMES, places="attention+mlp", blocks=[1])
    model = peft.get_peft_model(tiny.make(), config).eval()
    adapted, block = model.get_base_model().blocks[1], tiny.make().blocks[1]
    adapters = awaken(adapted.spatiotemporal).spatiotemporal_adapter["default"]
    seen: list[torch.Tensor] = []
    adapted.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]), prepend=True)
    adapted.register_forward_hook(lambda _, inputs, output: seen.append(output))
    model(tiny.videos(2))
    middle = adapters.first(seen[0].unflatten(0, (2, FRAMES))).flatten(0, 1)
    middle = middle + block.attn(block.norm1(middle))
    middle = adapters.second(middle.unflatten(0, (2, FRAMES))).flatten(0, 1)
    torch.testing.assert_close(seen[1], middle + block.mlp(block.norm2(middle)))


@SHAPES
def test_reversed_video_equals_a_mirrored_kernel(shape: STAdapterShape) -> None:
    adapter, clip = awaken(STAdapter(shape)), tokens()
    forward = adapter(clip)
    assert not torch.allclose(adapter(clip.flip(1)).flip(1), forward, atol=1e-3)
    with torch.no_grad():
        adapter.convolution.weight.copy_(adapter.convolution.weight.flip(2))
    torch.testing.assert_close(adapter(clip.flip(1)).flip(1), forward)


def test_temporal_kernel_mixes_neighboring_frames_of_one_patch() -> None:
    adapter, clip = awaken(STAdapter(OVER_TIME)), tokens(1, frames=6)
    moved = clip.clone()
    moved[0, 2, 4] += 1
    changed = (adapter.delta(moved) - adapter.delta(clip))[0].abs().amax(-1).gt(1e-6)
    expected = torch.zeros_like(changed)
    expected[1:4, 4] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("kernel", [(2, 1, 1), (3, 0, 1), (3, 3)])
def test_invalid_kernel_is_refused(kernel: tuple[int, ...]) -> None:
    with pytest.raises(DmgalError, match="kernel"):
        STAdapterShape(12, 6, 1, (2, 3), kernel)
