"""From decoded frames to the encoder's size, the same for every frame of a clip, all in uint8.

Normalization is not here: the encoder does it, on its device, so that clips stay small on the way there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import DmgalError

ASPECT_RATIOS = (3 / 4, 4 / 3)  # the usual range of random resized crops
RED, GREEN, BLUE = 0.299, 0.587, 0.114  # weights of a gray picture (ITU-R BT.601)


@dataclass(frozen=True)
class TestTransform:
    """Short side to ``round(size * resize)``, then the center crop; nothing random.

    Args:
        size: height and width of the result, pixels.
        resize: short side before the crop, as a multiple of ``size``, at least 1; 256 / 224 is the usual test of
            224-pixel backbones, and None, the default, means 1: as much of the frame as fits.
    """

    size: int
    resize: float | None = None

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.resize is not None and not self.resize >= 1:
            _refuse(f"resize={self.resize}", "resize at least 1, or None", "a crop cannot be larger than the frame")

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(T, 3, H, W)`` uint8 to ``(T, 3, size, size)`` uint8; ``generator`` is not used."""
        height, width = clip.shape[-2:]
        short = round(self.size * (self.resize or 1))
        scale = short / min(height, width)
        clip = _resized(clip, max(short, round(height * scale)), max(short, round(width * scale)))
        top, left = (clip.shape[-2] - self.size) // 2, (clip.shape[-1] - self.size) // 2
        return clip[..., top : top + self.size, left : left + self.size].contiguous()


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, then perhaps a mirror image and color jitter, one draw for the whole clip.

    Args:
        size: height and width of the result, pixels.
        scale: smallest and largest share of the frame's area in the crop; ``(1, 1)`` crops as `TestTransform` does.
        flip: mirror half of the clips. Only for data in which left and right mean nothing: never Something-Something.
        color_jitter: brightness, contrast and saturation are each scaled by a factor from ``[1 - j, 1 + j]``.
    """

    size: int
    scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = False
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            _refuse(f"scale={self.scale}", "0 < smallest <= largest <= 1", "give shares of the frame's area")
        if not 0 <= self.color_jitter <= 1:
            _refuse(f"color_jitter={self.color_jitter}", "from 0 to 1", "0 leaves colors alone, 0.4 is strong")

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """``(T, 3, H, W)`` uint8 to ``(T, 3, size, size)`` uint8; all randomness from ``generator``."""
        clip = self._cropped(clip, generator)
        if self.flip and _uniform(0, 1, generator) < 0.5:
            clip = clip.flip(-1)
        return self._jittered(clip, generator) if self.color_jitter else clip.contiguous()

    def _cropped(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        if self.scale[0] == 1:
            return TestTransform(self.size)(clip)
        height, width = clip.shape[-2:]
        area = height * width * _uniform(*self.scale, generator)
        ratio = math.exp(_uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1]), generator))
        # a crop that would stick out is cut to the frame rather than drawn anew: one draw, always valid
        crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
        crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
        top = int(_uniform(0, height - crop_height + 1, generator))
        left = int(_uniform(0, width - crop_width + 1, generator))
        return _resized(clip[..., top : top + crop_height, left : left + crop_width], self.size, self.size)

    def _jittered(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        brightness, contrast, saturation = (
            _uniform(1 - self.color_jitter, 1 + self.color_jitter, generator) for _ in range(3)
        )
        frames = clip.contiguous().float()
        # the mean of whole numbers in double precision: exact, so it does not depend on the number of threads
        mean = brightness * frames.sum(-1).double().sum().item() / frames.numel()
        # the three changes in a row are linear: scale * pixel + (share of the gray) * gray + (share of the mean)
        scale = saturation * contrast * brightness
        share = (1 - saturation) * contrast * brightness
        gray = frames[:, 0] * (share * RED)  # (T, H, W)
        gray.add_(frames[:, 1], alpha=share * GREEN).add_(frames[:, 2], alpha=share * BLUE).add_((1 - contrast) * mean)
        frames.mul_(scale).add_(gray.unsqueeze(1))
        return frames.round_().clamp_(0, 255).to(torch.uint8)


def short_side_to(clip: Tensor, pixels: int) -> Tensor:
    """``(T, 3, H, W)`` uint8 with its short side shrunk to ``pixels``; a smaller clip is left alone."""
    height, width = clip.shape[-2:]
    scale = min(1.0, pixels / min(height, width))
    return _resized(clip, max(1, round(height * scale)), max(1, round(width * scale)))


def _resized(clip: Tensor, height: int, width: int) -> Tensor:
    if clip.shape[-2:] == (height, width):
        return clip
    return interpolate(clip, (height, width), mode="bilinear", antialias=True)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _check_size(size: int) -> None:
    if size < 1:
        _refuse(f"size={size}", "at least 1 pixel", "take the backbone's input size")


def _refuse(received: str, expected: str, remedy: str) -> None:
    raise DmgalError("cannot build a video transform", received=received, expected=expected, remedy=remedy)
