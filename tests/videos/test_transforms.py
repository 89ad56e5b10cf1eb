"""Tests of the transforms: identical for all frames, uint8, and no change to clips that already fit."""

from __future__ import annotations

import pytest
import torch

from dmgal.errors import DmgalError
from dmgal.videos.decoding import clip as transforms
from dmgal.videos.decoding.clip import TrainTransform


def noise(height: int, width: int, frames: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(256, (frames, 3, height, width), generator=generator, dtype=torch.uint8)


def rows_and_columns(height: int, width: int) -> torch.Tensor:
    """Return a clip with the row in red and the column in green, so that a crop shows its position."""
    clip = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    clip[:, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    clip[:, 1] = torch.arange(width, dtype=torch.uint8)
    return clip


@pytest.mark.parametrize("size", [(48, 48), (48, 70), (90, 48), (17, 23), (240, 321)])
@pytest.mark.parametrize("resize", [None, 256 / 224])
def test_test_transform_returns_requested_size(size, resize):
    out = transforms.TestTransform(48, resize)(noise(*size))
    assert out.shape == (3, 3, 48, 48) and out.dtype == torch.uint8 and out.is_contiguous()


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (48, 48), (30, 100), (321, 240)])
def test_clips_of_other_sides_than_a_square(size):
    for height, width in ((48, 96), (96, 48), (20, 70)):
        for transform in (transforms.TestTransform((height, width), 1.2), TrainTransform((height, width))):
            out = transform(noise(*size), torch.Generator())
            assert out.shape == (3, 3, height, width) and out.dtype == torch.uint8 and out.is_contiguous()


def test_other_sides_keep_the_aspect_ratio():
    clip = rows_and_columns(60, 100)
    for transform in (transforms.TestTransform((30, 50)), TrainTransform((30, 50), (1, 1))):
        out = transform(clip, torch.Generator()).float()[0]
        assert (out[0, :, 0] - 2 * torch.arange(30) - 0.5).abs().max() < 1
        assert (out[1, 0] - 2 * torch.arange(50) - 0.5).abs().max() < 1
    assert torch.equal(transforms.TestTransform((20, 100))(clip), clip[:, :, 20:40])
    ratios = []
    for seed in range(50):
        out = TrainTransform((20, 60), (0.1, 0.1))(clip, torch.Generator().manual_seed(seed)).float()[0]
        ratios.append((out[1, 0, -1] - out[1, 0, 0]) / (out[0, -1, 0] - out[0, 0, 0]))
    assert 2 < min(ratios) < 2.6 < 3.4 < max(ratios) < 4.5


def test_equal_sides_are_a_square():
    assert transforms.TestTransform((48, 48)) == transforms.TestTransform(48)
    assert repr(TrainTransform((48, 48))) == repr(TrainTransform(48))


def test_fitting_clip_is_unchanged():
    clip = noise(48, 48)
    assert torch.equal(transforms.TestTransform(48)(clip), clip)
    assert torch.equal(TrainTransform(48, scale=(1, 1))(clip, torch.Generator()), clip)
    wide = noise(48, 60)
    assert torch.equal(transforms.TestTransform(48)(wide), wide[..., 6:54])
    assert torch.equal(transforms.TestTransform(24, resize=2)(clip), clip[..., 12:36, 12:36])


def test_resizing_is_antialiased_and_centered():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = transforms.TestTransform(16)(stripes)
    assert (small.float() - 127.5).abs().max() < 20  # without antialiasing every column would be 0 or 255
    middle = transforms.TestTransform(20)(rows_and_columns(40, 120)).float()
    assert abs(middle[0, 1].mean() - 59.5) < 0.6 and abs(middle[0, 0].mean() - 19.5) < 0.6


def test_all_frames_are_transformed_identically():
    one = noise(60, 80, frames=1)
    clip = one.expand(5, -1, -1, -1)
    transform = TrainTransform(32, flip=True, color_jitter=0.4)
    for seed in range(8):
        out = transform(clip, torch.Generator().manual_seed(seed))
        assert out.shape == (5, 3, 32, 32) and out.dtype == torch.uint8 and out.is_contiguous()
        assert all(torch.equal(out[0], frame) for frame in out)


def test_generator_is_the_only_source_of_randomness():
    clip = noise(60, 80)
    transform = TrainTransform(32, flip=True, color_jitter=0.4)
    state = torch.get_rng_state()
    outs = [transform(clip, torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)]
    assert torch.equal(outs[0], outs[2]) and not torch.equal(outs[0], outs[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_crops_cover_the_frame_and_have_the_requested_area():
    clip = rows_and_columns(100, 200)
    generator = torch.Generator().manual_seed(0)
    tops, lefts, areas = [], [], []
    for _ in range(150):
        out = TrainTransform(32, scale=(0.2, 0.4))(clip, generator).float()[0]
        tops.append(out[0].min().item())
        lefts.append(out[1].min().item())
        areas.append((out[0].max() - out[0].min()).item() * (out[1].max() - out[1].min()).item() / 20_000)
    assert min(tops) < 3 and max(tops) > 25
    assert min(lefts) < 5 and max(lefts) > 120
    assert 0.15 < min(areas) < 0.22 and 0.35 < max(areas) < 0.42


def test_flips_only_if_enabled():
    clip = rows_and_columns(32, 32)
    flipped = {
        allowed: sum(
            bool(TrainTransform(32, (1, 1), flip=allowed)(clip, torch.Generator().manual_seed(seed))[0, 1, 0, 0] > 15)
            for seed in range(200)
        )
        for allowed in (False, True)
    }
    assert flipped[False] == 0
    assert 70 < flipped[True] < 130


def test_color_jitter_changes_colors_within_bounds_only():
    clip = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    means = []
    for seed in range(50):
        out = TrainTransform(8, (1, 1), color_jitter=0.3)(clip, torch.Generator().manual_seed(seed))
        assert len(out.unique()) == 1  # a uniform gray frame stays uniform and gray
        means.append(out.float().mean().item())
    assert 70 <= min(means) < 80 and 120 < max(means) <= 130


def test_color_jitter_changes_brightness_contrast_and_saturation():
    clip = noise(16, 16)
    outs = [TrainTransform(16, (1, 1), color_jitter=0.5)(clip, torch.Generator().manual_seed(s)) for s in range(30)]
    floats = [out.float() for out in outs]
    for spread in (
        [f.mean() for f in floats],
        [f.std() / f.mean() for f in floats],
        [f.std(1).mean() / f.mean() for f in floats],
    ):
        assert torch.stack(spread).std() / torch.stack(spread).mean() > 0.05


def jitter_reference(clip: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Apply the changes one after the other in double precision."""
    frames = clip.double() * brightness
    frames = frames.mean() + (frames - frames.mean()) * contrast
    gray = (frames * frames.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return (gray + (frames - gray) * saturation).clamp(0, 255)


def test_color_jitter_matches_sequential_reference():
    clip = noise(20, 30)
    for seed in range(10):
        draws = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted = jitter_reference(clip, *(0.6 + 0.8 * draws).tolist())
        out = TrainTransform(20, (1, 1), color_jitter=0.4)(clip, torch.Generator().manual_seed(seed))
        assert (out.double() - wanted[..., 5:25]).abs().max() > 0  # the mean is that of the crop, not of the frame
        cropped = clip[..., 5:25]
        assert (out.double() - jitter_reference(cropped, *(0.6 + 0.8 * draws).tolist())).abs().max() <= 0.501


TRANSFORMS = (transforms.TestTransform(48, 1.2), TrainTransform(48, flip=True, color_jitter=0.4))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_result_is_independent_of_threads_and_memory_layout(transform):
    clip = noise(90, 130, frames=8)
    before = torch.get_num_threads()
    outs = []
    try:
        for threads, layout in ((1, torch.contiguous_format), (4, torch.contiguous_format), (1, torch.channels_last)):
            torch.set_num_threads(threads)
            out = transform(clip.contiguous(memory_format=layout), torch.Generator().manual_seed(3))
            assert out.is_contiguous()
            outs.append(out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    ("height", "width", "wanted"), [(100, 200, (50, 100)), (200, 90, (111, 50)), (40, 300, (40, 300))]
)
def test_short_side_is_never_enlarged(height, width, wanted):
    small = transforms.short_side_to(noise(height, width), 50)
    assert small.shape == (3, 3, *wanted) and small.dtype == torch.uint8


@pytest.mark.parametrize(
    "build",
    [
        lambda: transforms.TestTransform(0),
        lambda: transforms.TestTransform(8, 0.9),
        lambda: TrainTransform(-1),
        lambda: transforms.TestTransform((8, 0)),
        lambda: TrainTransform(8, (0, 1)),
        lambda: TrainTransform(8, (0.9, 0.5)),
        lambda: TrainTransform(8, color_jitter=1.5),
    ],
)
def test_invalid_settings_raise(build):
    with pytest.raises(DmgalError, match="Cannot build a video transform"):
        build()
