"""Checks for every adapter on tokens of videos, ``(V, T, N, C)``."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from dmgal.errors import DmgalError


def random_tokens(videos: int, frames: int, num_tokens: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(videos, frames, num_tokens, width, generator=torch.Generator().manual_seed(seed))


def awaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Perturb all weights, so that no zero hides an effect, and switch to evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_identity_at_the_start(module: nn.Module, tokens: Tensor) -> None:
    """Check for bit-identical outputs in each precision and under autocast, and for a change once perturbed."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(module.to(dtype)(tokens.to(dtype)), tokens.to(dtype))
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(tokens), tokens)
    assert not torch.allclose(awaken(module)(tokens), tokens)


def check_every_parameter_is_read(module: nn.Module, tokens: Tensor) -> None:
    """Check that each parameter and each input token gets a gradient after a perturbation."""
    tokens = tokens.clone().requires_grad_()
    awaken(module)(tokens).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert tokens.grad is not None and tokens.grad.abs().flatten(0, 1).sum((0, 1)).gt(0).all()


def check_videos_are_apart(module: nn.Module, tokens: Tensor) -> None:
    """Check that a video's output does not depend on the other videos, for any number of videos."""
    awaken(module)
    alone = torch.cat([module(video[None]) for video in tokens])
    torch.testing.assert_close(module(tokens), alone)
    assert module(tokens[:0]).shape == tokens[:0].shape


def check_wrong_tokens_are_refused(module: nn.Module, tokens: Tensor) -> None:
    for wrong in (tokens[0], tokens[:, :, 1:], tokens[..., 1:]):
        with pytest.raises(DmgalError, match="received") as caught:
            module(wrong)
        assert str(tuple(wrong.shape)) in str(caught.value)


def check_reference_weights_must_fit(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that a missing, an unknown and a misshapen tensor raise an error and leave the module unchanged."""
    first, *rest = weights
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for wrong in (
        {key: weights[key] for key in rest},
        {**weights, "conv9.weight": torch.zeros(1)},
        {**weights, first: torch.zeros(*weights[first].shape, 2)},
    ):
        with pytest.raises(DmgalError, match="reference weights"):
            module.load_reference_state_dict(wrong)
        assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
