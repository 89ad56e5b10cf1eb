"""Clips of a video: the choice of ``T`` frames, one from each of ``T`` equal segments, and their transforms.

Segment ``i`` of ``n`` frames is ``[i*n/T, (i+1)*n/T)``. In units of 1/T of a frame it consists of the ``n`` integers
from ``i*n``, so all arithmetic is exact. A video shorter than ``T`` repeats frames by the same rule. A transform treats
all frames of a clip alike and keeps them uint8; the encoder normalizes them on its own device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...errors import DmgalError


def uniform_frames(num_frames: int, num_wanted: int) -> list[int]:
    """Return the middle frame of each segment: the fixed input of validation and test.

    Args:
        num_frames: frames in the video, at least 1.
        num_wanted: ``T``, number of frames to choose, at least 1.

    Returns:
        ``T`` non-decreasing indices. If ``num_frames == T``, these are all frames in order.

    Raises:
        DmgalError: a count below 1.
    """
    _check_counts(num_frames, num_wanted)
    return [(2 * segment + 1) * num_frames // (2 * num_wanted) for segment in range(num_wanted)]


def random_frames(num_frames: int, num_wanted: int, generator: torch.Generator) -> list[int]:
    """Return a random frame of each segment, drawn uniformly: the varied input of training.

    Arguments, result and errors are those of `uniform_frames`. ``generator`` is the only source of randomness.
    """
    _check_counts(num_frames, num_wanted)
    offsets = torch.randint(num_frames, (num_wanted,), generator=generator).tolist()
    return [(segment * num_frames + offset) // num_wanted for segment, offset in enumerate(offsets)]


def _check_counts(num_frames: int, num_wanted: int) -> None:
    if num_frames < 1 or num_wanted < 1:
        raise DmgalError(
            "Cannot choose frames of a video.",
            received=f"{num_wanted} frames wanted of a video of {num_frames}",
            expected="at least one frame wanted, and at least one in the video",
            remedy="Set the number of frames to 1 or more, and exclude videos without frames.",
        )


def one_frame(received: str) -> DmgalError:
    """Return the error for a video in which nothing can move."""
    return DmgalError(
        "Motion needs at least two frames.",
        received=received,
        expected="a video of two or more frames",
        remedy="Pass a longer video.",
    )


def hashed_seed(*numbers: int | str) -> int:
    """Return a 64-bit hash of all numbers and their order; adjacent numbers give unrelated seeds."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class FrameSampler:
    """The choice of a video's frames and their transform: random for training, fixed for validation and test.

    Args:
        num_frames: ``T``, frames per clip.
        transform: maps a clip ``(T, 3, H, W)`` to ``(T, 3, *size)``, both uint8. With a seed, it also takes a
            generator.
        seed: determines the random choices of training. None uses the middle frame of each segment, and passes no
            generator.
    """

    num_frames: int
    transform: Callable[..., Tensor]
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise DmgalError(
                "Cannot read videos.",
                received=f"num_frames={self.num_frames}",
                expected="at least 1",
                remedy="Set the number of frames per video to 1 or more.",
            )

    def clip(self, read: Callable[[Callable[[int], Sequence[int]]], Tensor], *draw: int | str) -> Tensor:
        """Return a clip of a video.

        Args:
            read: returns the frames of the video that a function chooses (see `read_clip`).
            draw: numbers and names that, with the seed, determine the random choices.
        """
        if self.seed is None:
            return self.transform(read(partial(uniform_frames, num_wanted=self.num_frames)))
        seed, generator = hashed_seed(self.seed, *draw), torch.Generator()

        def choose(num_frames: int) -> list[int]:
            # `read` may call this twice and must get the same frames, so the generator is seeded here.
            return random_frames(num_frames, self.num_frames, generator.manual_seed(seed))

        clip = read(choose)
        return self.transform(clip, generator.manual_seed(hashed_seed(seed, "transform")))


Size = int | tuple[int, int]
"""Height and width in pixels, or one number for a square."""
ASPECT_RATIOS = (3 / 4, 4 / 3)  # the usual range of random resized crops, as a multiple of the result's own
RED, GREEN, BLUE = 0.299, 0.587, 0.114  # weights of the gray value (ITU-R BT.601)


@dataclass(frozen=True)
class TestTransform:
    """Deterministic resizing until ``round(size * resize)`` just fits into the frame, followed by a center crop.

    Args:
        size: height and width of the result, pixels. For a square, the short side of the frame is resized.
        resize: the frame before the crop, as a multiple of ``size``, at least 1. The default None means 1: the crop
            is as large as possible. 256 / 224 is the usual setting for 224-pixel backbones.
    """

    size: Size
    resize: float | None = None

    def __post_init__(self) -> None:
        _set_size(self)
        if self.resize is not None and not self.resize >= 1:
            raise _invalid(
                f"resize={self.resize}", "resize at least 1, or None", "Use 1 or more: a crop fits in the frame."
            )

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transform uint8 ``(T, 3, H, W)`` into uint8 ``(T, 3, *size)``. ``generator`` is ignored."""
        (height, width), frame = height_and_width(self.size), clip.shape[-2:]
        least = [round(side * (self.resize or 1)) for side in (height, width)]
        scale = max(side / own for side, own in zip(least, frame, strict=True))
        clip = _resize(clip, *(max(side, round(own * scale)) for side, own in zip(least, frame, strict=True)))
        top, left = (clip.shape[-2] - height) // 2, (clip.shape[-1] - width) // 2
        return clip[..., top : top + height, left : left + width].contiguous()


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop with optional flip and color jitter, drawn once for the whole clip.

    Args:
        size: height and width of the result, pixels.
        scale: smallest and largest fraction of the frame's area in the crop. ``(1, 1)`` crops like `TestTransform`.
        flip: mirror half of the clips. Use it only if left and right carry no meaning, so never for
            Something-Something.
        color_jitter: ``j``; brightness, contrast and saturation are each scaled by a factor from ``[1 - j, 1 + j]``.
    """

    size: Size
    scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = False
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        _set_size(self)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise _invalid(f"scale={self.scale}", "0 < smallest <= largest <= 1", "Give fractions of the frame's area.")
        if not 0 <= self.color_jitter <= 1:
            raise _invalid(f"color_jitter={self.color_jitter}", "from 0 to 1", "Use 0 for no jitter; 0.4 is strong.")

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """Transform uint8 ``(T, 3, H, W)`` into uint8 ``(T, 3, *size)``, with ``generator`` for all randomness."""
        clip = self._crop(clip, generator)
        if self.flip and _uniform(0, 1, generator) < 0.5:
            clip = clip.flip(-1)
        if self.color_jitter:
            return self._jitter_colors(clip, generator)
        return clip.contiguous()

    def _crop(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        if self.scale[0] == 1:
            return TestTransform(self.size)(clip)
        (height, width), size = clip.shape[-2:], height_and_width(self.size)
        area = height * width * _uniform(*self.scale, generator)
        ratio = math.exp(_uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1]), generator))
        ratio *= size[1] / size[0]
        # A crop larger than the frame is clipped instead of redrawn, so that every clip takes one draw.
        crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
        crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
        top = int(_uniform(0, height - crop_height + 1, generator))
        left = int(_uniform(0, width - crop_width + 1, generator))
        return _resize(clip[..., top : top + crop_height, left : left + crop_width], *size)

    def _jitter_colors(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        brightness, contrast, saturation = (
            _uniform(1 - self.color_jitter, 1 + self.color_jitter, generator) for _ in range(3)
        )
        frames = clip.contiguous().float()
        # A double-precision sum of integers is exact, so it does not depend on the number of threads.
        mean = brightness * frames.sum(-1).double().sum().item() / frames.numel()
        # The three changes are linear, so they combine to scale * pixel + share * gray + (1 - contrast) * mean.
        scale = saturation * contrast * brightness
        share = (1 - saturation) * contrast * brightness
        gray = frames[:, 0] * (share * RED)
        gray.add_(frames[:, 1], alpha=share * GREEN).add_(frames[:, 2], alpha=share * BLUE).add_((1 - contrast) * mean)
        frames.mul_(scale).add_(gray.unsqueeze(1))
        return frames.round_().clamp_(0, 255).to(torch.uint8)


def short_side_to(clip: Tensor, pixels: int) -> Tensor:
    """Return uint8 ``(T, 3, H, W)`` with its short side shrunk to ``pixels``. Smaller clips stay unchanged."""
    height, width = clip.shape[-2:]
    scale = min(1.0, pixels / min(height, width))
    return _resize(clip, max(1, round(height * scale)), max(1, round(width * scale)))


def _resize(clip: Tensor, height: int, width: int) -> Tensor:
    if clip.shape[-2:] == (height, width):
        return clip
    return interpolate(clip, (height, width), mode="bilinear", antialias=True)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def height_and_width(size: Size) -> tuple[int, int]:
    """Return height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def _set_size(transform: TestTransform | TrainTransform) -> None:
    """Make the size of a square one number, so that equal transforms are equal."""
    height, width = height_and_width(transform.size)
    if min(height, width) < 1:
        raise _invalid(f"size={transform.size}", "at least 1 pixel", "Use the backbone's input size.")
    object.__setattr__(transform, "size", height if height == width else (height, width))


def _invalid(received: str, expected: str, remedy: str) -> DmgalError:
    return DmgalError("Cannot build a video transform.", received=received, expected=expected, remedy=remedy)
