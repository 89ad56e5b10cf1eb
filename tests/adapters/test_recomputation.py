"""Recomputation in the backward pass: the same result and gradients with less memory."""

from __future__ import annotations

from contextlib import nullcontext

import peft
import pytest
import torch
from torch import nn

import dmgal.adapters.dmgal as smga
from dmgal.adapters import SmgaConfig
from dmgal.adapters.autograd import differentiable_twice, recomputed
from dmgal.adapters.motion import BottleneckShape
from dmgal.backbones import FrameEncoder
from dmgal.episodes.two_pass.memory import LiveBytes
from dmgal.errors import DmgalError

SHAPE = BottleneckShape(width=32, bottleneck=8, motion_width=4, num_frames=4, num_prefix_tokens=1, grid=(8, 8))


def adapter(dtype=torch.float64):
    torch.manual_seed(0)
    made = smga.SmgaAdapter(SHAPE).to(dtype)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def disable_recomputation(monkeypatch):
    """Disable recomputation, so that torch saves all intermediate results."""
    monkeypatch.setattr(smga, "recomputed", lambda work, entering, parameters: work(entering))
    monkeypatch.setattr(
        smga, "residual_bottleneck", lambda tokens, down, between, up, within: tokens + up(between(down(tokens)))
    )


def result_and_gradients(made, tokens, region=nullcontext):
    leaf = tokens.detach().clone().requires_grad_(tokens.requires_grad)
    with region():
        result = made(leaf)
    result.square().sum().backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
    made.zero_grad(set_to_none=True)
    return {"result": result.detach()} | gradients | ({"tokens": leaf.grad} if leaf.requires_grad else {})


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants", [True, False], ids=["behind something trained", "behind what is frozen"])
def test_recomputation_gives_the_same_result_and_gradients(monkeypatch, dtype, wants):
    made, tolerance = adapter(dtype), {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    tokens = torch.randn(3, 4, 65, 32, dtype=dtype, requires_grad=wants)
    found = result_and_gradients(made, tokens)
    disable_recomputation(monkeypatch)
    assert_close(found, result_and_gradients(made, tokens), tolerance)


@pytest.mark.parametrize("name", ["down.weight", "down.bias", "up.weight", "temporal"])
def test_frozen_parts_get_no_gradient(monkeypatch, name):
    made, tokens = adapter(), torch.randn(2, 4, 65, 32, dtype=torch.float64, requires_grad=True)
    made.get_parameter(name).requires_grad_(False)
    found = result_and_gradients(made, tokens)
    assert name not in found and made.get_parameter(name).grad is None
    disable_recomputation(monkeypatch)
    assert_close(found, result_and_gradients(made, tokens), 1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3], ids=["small", "equal", "large"])
def test_tokens_are_reconstructed_for_changes_of_any_size(monkeypatch, size):
    """The more a change outweighs the tokens, the fewer of their digits are left in the result."""
    made, tokens = adapter(torch.float32), torch.randn(3, 4, 65, 32, requires_grad=True)
    made.up.weight.data *= size
    found = result_and_gradients(made, tokens)
    disable_recomputation(monkeypatch)
    assert_close(found, result_and_gradients(made, tokens), 1e-5 * max(1, size))


def test_recomputation_runs_under_the_autocast_of_forward(monkeypatch):
    made, tokens = adapter(torch.float32), torch.randn(2, 4, 65, 32)
    regions = []
    between = made._between
    made._between = lambda reduced: regions.append(torch.is_autocast_enabled("cpu")) or between(reduced)
    found = result_and_gradients(made, tokens, lambda: torch.autocast("cpu", torch.bfloat16))
    assert regions == [True, True]
    disable_recomputation(monkeypatch)
    assert_close(found, result_and_gradients(made, tokens, lambda: torch.autocast("cpu", torch.bfloat16)), 5e-2)


def held(made, tokens):
    """Return the bytes of the result and of what is saved for backward. The tokens may be freed."""
    with LiveBytes() as live:
        result = made(1 * tokens)
    assert result.requires_grad
    return live.now


def test_backward_under_autocast_works():
    made, tokens = adapter(torch.float32), torch.randn(2, 4, 65, 32)

    def gradients(inside: bool) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = made(tokens).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found = {name: parameter.grad for name, parameter in made.named_parameters()}
        made.zero_grad(set_to_none=True)
        return found

    assert_close(gradients(inside=True), gradients(inside=False), 0.0)


def test_attention_maps_are_not_saved(monkeypatch):
    made, tokens = adapter(torch.bfloat16), torch.randn(3, 4, 65, 32, dtype=torch.bfloat16)
    less = held(made, tokens)
    disable_recomputation(monkeypatch)
    maps = 3 * 3 * 4 * 65 * 65 * 2  # each direction's and their mean, of every frame
    assert held(made, tokens) - less > maps


def test_full_precision_saves_only_the_bottleneck_input():
    made, tokens = adapter(torch.float32), torch.randn(3, 4, 65, 32)
    assert held(made, tokens) == tokens.nbytes + tokens.nbytes // 4


def test_lora_with_dropout_on_down_has_the_same_gradients(monkeypatch):
    made, tokens = adapter(torch.float32), torch.randn(3, 4, 65, 32)
    made.down = nn.Sequential(made.down, nn.Dropout(0.5))
    torch.manual_seed(1)
    found = result_and_gradients(made, tokens)
    disable_recomputation(monkeypatch)
    torch.manual_seed(1)
    assert_close(found, result_and_gradients(made, tokens), 1e-5)


def test_frozen_inputs_and_parameters_get_no_gradient():
    linear = nn.Linear(3, 3)
    linear.bias.requires_grad_(False)
    entering = torch.randn(2, 3)
    recomputed(linear, entering, list(linear.parameters())).sum().backward()
    assert linear.bias.grad is None and linear.weight.grad is not None
    with torch.no_grad():
        assert not recomputed(linear, entering, list(linear.parameters())).requires_grad


def penalty(made, tokens):
    """Return the gradients of a gradient penalty: of the squared norm of the first gradient."""
    leaf = tokens.detach().clone().requires_grad_()
    loss = made(leaf).square().sum()
    first = torch.autograd.grad(loss, [leaf, *made.parameters()], create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), [leaf, *made.parameters()])


def test_gradients_of_gradients_are_those_without_recomputation(monkeypatch):
    made, tokens = adapter(), torch.randn(2, 4, 65, 32, dtype=torch.float64)
    with differentiable_twice():
        found = penalty(made, tokens)
    disable_recomputation(monkeypatch)
    for one, other in zip(found, penalty(made, tokens), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_second_gradient_outside_of_the_context_is_refused():
    with pytest.raises(DmgalError, match="differentiable_twice"):
        penalty(adapter(), torch.randn(2, 4, 65, 32, dtype=torch.float64))


def test_transforms_of_torch_func_give_the_same_gradients():
    made, tokens = adapter(), torch.randn(3, 4, 65, 32, dtype=torch.float64)

    def loss(parameters, videos):
        return torch.func.functional_call(made, parameters, (videos,)).square().sum()

    parameters = {name: p.detach() for name, p in made.named_parameters()}
    found = torch.func.grad(loss)(parameters, tokens)
    expected = result_and_gradients(made, tokens)
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9, atol=1e-12)
    by_video = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, tokens[:, None])
    for name, gradients in by_video.items():
        assert torch.allclose(gradients.sum(0), expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_second_gradients_of_an_encoder(open_clip_visual, checkpoint_blocks):
    """Include attention of the backbone and recomputed blocks."""
    model = peft.get_peft_model(open_clip_visual.make(), SmgaConfig(num_frames=4)).double()
    encoder = FrameEncoder(model, checkpoint_blocks=checkpoint_blocks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        nn.init.normal_(parameter, std=0.1)
    with differentiable_twice():
        loss = encoder.encode(open_clip_visual.videos(2).double())["features"].square().sum()
    first = torch.autograd.grad(loss, trained, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), trained)
    assert all(gradient.isfinite().all() for gradient in second) and any(gradient.any() for gradient in second)
