"""Frame mixing: the released numbers, patch positions kept apart, the arrow of time, half the frames."""

from __future__ import annotations

import pytest
import torch

from dmgal.episodes.heads import TemporalMixer
from dmgal.episodes.heads.temporal_mixer import TMixer
from dmgal.errors import DmgalError


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_golden(read_golden, assert_relatively_close) -> None:
    tensors, weights, info = read_golden("sact_tmixer_frame_mixing")
    frames = tensors["x"].unflatten(0, (-1, info["frames"]))
    mixer = TemporalMixer(info["frames"], frames.shape[2])
    mixer.load_reference_state_dict(weights)
    assert_relatively_close(mixer(frames), tensors["y"])
    at_one_patch = mixer(frames[..., 3, 5])
    assert_relatively_close(at_one_patch, tensors["y"][..., 3, 5])


@pytest.mark.parametrize("grid", [(), (7, 7), (2, 5), (1, 1)])
def test_videos_and_patches_are_mixed_separately(grid: tuple[int, ...]) -> None:
    mixer, videos = TemporalMixer(6, 8), features(3, 6, 8, *grid)
    mixed = mixer(videos)
    assert mixed.shape == videos.shape
    torch.testing.assert_close(mixed[1:2], mixer(videos[1:2]))
    if grid:
        torch.testing.assert_close(mixed[..., -1, 0], mixer(videos[..., -1, 0]))


def test_reversed_frames_give_other_features() -> None:
    mixer, videos = TemporalMixer(6, 8), features(2, 6, 8)
    assert not torch.allclose(mixer(videos.flip(1)), mixer(videos).flip(1), atol=1e-3)


def test_number_of_parameters_at_the_width_of_a_resnet50() -> None:
    count = sum(parameter.numel() for parameter in TemporalMixer(8, 2048).parameters())
    assert count == 2 * (8 * 8 + 8) + 2 * (2048 * 2048 + 2048) == 8_392_848


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 6, 9), (2, 6, 8, 7), (6, 8)])
def test_invalid_shapes_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(DmgalError, match=r"\(videos, 6, 8\)"):
        TemporalMixer(6, 8)(torch.zeros(shape))


class TestFrameHalving:
    @pytest.mark.parametrize(("num_frames", "halved"), [(2, 1), (5, 2), (8, 4), (16, 8)])
    @pytest.mark.parametrize("grid", [(), (3, 5)])
    def test_number_of_frames_is_halved(self, num_frames: int, halved: int, grid: tuple[int, ...]) -> None:
        mixer, videos = TMixer(num_frames, 8), features(3, num_frames, 8, *grid)
        mixed = mixer(videos)
        assert mixed.shape == (3, halved, 8, *grid)
        torch.testing.assert_close(mixed[1:2], mixer(videos[1:2]))
        if grid:
            torch.testing.assert_close(mixed[..., -1, 0], mixer(videos[..., -1, 0]))

    def test_features_equal_a_loop_over_frames_and_channels(self) -> None:
        mixer, video = TMixer(4, 3), features(1, 4, 3)
        first = mixer.mixing(video)[0].T  # (C,T)
        halved = mixer.halving_out(mixer.halving_in(first).relu()).T  # (T/2,C), without a residual
        expected = halved + mixer.channels_out(mixer.channels_in(halved).relu())
        torch.testing.assert_close(mixer(video)[0], expected)

    def test_single_frame_raises(self) -> None:
        with pytest.raises(DmgalError, match="num_frames=1"):
            TMixer(1, 8)

    def test_invalid_shapes_raise(self) -> None:
        with pytest.raises(DmgalError, match=r"\(videos, 6, 8\)"):
            TMixer(6, 8)(torch.zeros(2, 5, 8))
