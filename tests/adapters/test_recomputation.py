"""Work that is done again in the backward pass: the same result and gradients, in less memory."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import dmgal.adapters.smga as smga
from dmgal.adapters.motion import BottleneckShape
from dmgal.adapters.recomputation import recomputed
from dmgal.episodes.little_memory.live_bytes import LiveBytes

SHAPE = BottleneckShape(width=32, bottleneck=8, motion_width=4, num_frames=4, num_prefix_tokens=1, grid=(8, 8))


def adapter(dtype=torch.float64):
    torch.manual_seed(0)
    made = smga.SmgaAdapter(SHAPE).to(dtype)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def kept(monkeypatch):
    """From here on nothing is done again: everything is kept, as torch does by itself."""
    monkeypatch.setattr(smga, "recomputed", lambda work, entering, parameters: work(entering))


def result_and_gradients(made, tokens, region=nullcontext):
    with region():
        result = made(tokens)
    result.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in made.named_parameters()}
    made.zero_grad()
    return result.detach(), gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_adapter_gives_what_it_gives_with_everything_kept(monkeypatch, dtype):
    made, tolerance = adapter(dtype), {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    tokens = torch.randn(3, 4, 65, 32, dtype=dtype, requires_grad=True)
    result, gradients = result_and_gradients(made, tokens)
    of_tokens, tokens.grad = tokens.grad, None
    kept(monkeypatch)
    expected, expected_gradients = result_and_gradients(made, tokens)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(of_tokens, tokens.grad, rtol=tolerance, atol=tolerance * tokens.grad.abs().max().item())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name


def test_the_second_time_is_under_the_autocast_of_the_first(monkeypatch):
    made, tokens = adapter(torch.float32), torch.randn(2, 4, 65, 32)
    regions = []
    between = made._between
    made._between = lambda reduced: regions.append(torch.is_autocast_enabled("cpu")) or between(reduced)
    _, gradients = result_and_gradients(made, tokens, lambda: torch.autocast("cpu", torch.bfloat16))
    assert regions == [True, True]
    kept(monkeypatch)
    _, expected = result_and_gradients(made, tokens, lambda: torch.autocast("cpu", torch.bfloat16))
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() <= 5e-2 * gradient.abs().max(), name


def test_it_keeps_no_attention_maps(monkeypatch):
    made, tokens = adapter(torch.float32), torch.randn(3, 4, 65, 32)

    def held() -> int:
        with LiveBytes() as live:
            result = made(tokens)
        assert result.requires_grad
        return live.now

    less = held()
    kept(monkeypatch)
    maps = 3 * 3 * 4 * 65 * 65 * 4  # each direction's and their mean, of every frame
    assert held() - less > maps


def test_what_is_frozen_gets_no_gradient_and_is_not_asked_for_one():
    linear = nn.Linear(3, 3)
    linear.bias.requires_grad_(False)
    entering = torch.randn(2, 3)
    recomputed(linear, entering, list(linear.parameters())).sum().backward()
    assert linear.bias.grad is None and linear.weight.grad is not None
    with torch.no_grad():
        assert not recomputed(linear, entering, list(linear.parameters())).requires_grad
