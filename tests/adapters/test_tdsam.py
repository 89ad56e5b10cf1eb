"""TDSAM: golden outputs of the released code, and effects of its values over time."""

from __future__ import annotations

import pytest
import torch
from golden_files import assert_relatively_close, read_golden
from torch import Tensor

from dmgal.adapters.mga import TDSAM
from dmgal.errors import DmgalError


def awake(channels: int = 16) -> TDSAM:
    """Return a TDSAM with perturbed weights in evaluation mode, so that no zero gamma hides an effect."""
    generator = torch.Generator().manual_seed(0)
    module = TDSAM(channels)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def maps(videos: int, frames: int = 4, grid: tuple[int, int] = (5, 6), seed: int = 1) -> Tensor:
    return torch.randn(videos, frames, 16, *grid, generator=torch.Generator().manual_seed(seed))


def test_tdsam_matches_released_code() -> None:
    tensors, weights, info = read_golden("m2acl_tdsam")
    module = TDSAM(tensors["x"].shape[1], info["reduction"]).eval()
    module.load_reference_state_dict(weights)
    ours = module(tensors["x"].unflatten(0, (-1, info["frames"]))).flatten(0, 1)
    assert_relatively_close(ours, tensors["y"])


def test_unfitting_reference_weights_are_refused() -> None:
    _, weights, _ = read_golden("m2acl_tdsam")
    with pytest.raises(DmgalError, match="conv9"):
        TDSAM(24).load_reference_state_dict({**weights, "conv9.weight": torch.zeros(1)})


def test_initial_module_is_the_identity() -> None:
    features = maps(2)
    assert torch.equal(TDSAM(16)(features), features)


def test_each_video_is_handled_alone() -> None:
    module, features = awake(), maps(3)
    torch.testing.assert_close(module(features), torch.cat([module(video[None]) for video in features]))


@pytest.mark.parametrize("grid", [(7, 7), (2, 5), (1, 1)])
@pytest.mark.parametrize("frames", [1, 3, 9])
def test_module_accepts_any_grid_and_number_of_frames(grid: tuple[int, int], frames: int) -> None:
    attended = awake()(maps(2, frames, grid))
    assert attended.shape == (2, frames, 16, *grid) and attended.isfinite().all()


def test_reversed_video_has_other_features() -> None:
    module, features = awake(), maps(2)
    assert not torch.allclose(module(features.flip(1)), module(features).flip(1), atol=1e-3)
    with torch.no_grad():  # with symmetric values only the attention is left, which does not see the sign of motion
        module.values.weight.copy_((module.values.weight + module.values.weight.flip(2)) / 2)
    torch.testing.assert_close(module(features.flip(1)), module(features).flip(1), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    module, features = awake().train(), maps(2).requires_grad_()
    module(features).sin().sum().backward()
    for name, parameter in [*module.named_parameters(), ("features", features)]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_frames_without_videos_are_refused() -> None:
    with pytest.raises(DmgalError, match=r"\(8, 16, 7, 7\)"):
        TDSAM(16)(torch.zeros(8, 16, 7, 7))
