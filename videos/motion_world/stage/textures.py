"""Textures and colors, drawn independently of every motion.

Patterns of gray are drawn once per process and shared: 1/f noise, dead leaves, fractals, stripes, checks, gradients and
cells. A texture is a random cut of one of them in random colors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from .curves import Array

Image = NDArray[np.uint8]
SIZE, PATTERNS = 256, 64
VIVID = 0.3  # share of vivid colors
WARMTH = np.array([1.0, 0.2, -1.0])
RAMP = np.linspace(0, 1, 256)[:, None]
KINDS = ("noise", "leaves", "fractal", "stripes", "checks", "gradient", "cells", "cloth")


def color(rng: np.random.Generator) -> Array:
    """Draw a color: vivid or muted, red, green and blue from 0 to 255."""
    kind, gray, warm, *vivid = rng.random(6)
    if kind < VIVID:
        return 255 * np.array(vivid)
    return np.asarray(20 + 215 * gray + (50 * warm - 25) * WARMTH + 60 * (np.array(vivid) - 0.5)).clip(0, 255)


def skin_color(rng: np.random.Generator) -> Array:
    """Draw a color of skin, or any other color, as of gloves and costumes."""
    lightness, other = rng.uniform(0.3, 1.0), color(rng)
    natural = (lightness * np.array([225.0, 175.0, 140.0]) + rng.normal(0, 12, 3)).clip(0, 255)
    return natural if rng.random() < 0.75 else other


@dataclass(frozen=True)
class Texture:
    """A cut of a pattern in three colors. It is painted on first use, because most looks of a cast are not seen.

    Args:
        pattern: index of the pattern.
        cut: top, left and extent of the cut.
        turns: quarters of a turn, and whether the cut is mirrored.
        colors: of dark, middle and light pixels, ``(3, 3)``.
        size: height and width in pixels, at most 256.
    """

    pattern: int
    cut: tuple[int, int, int]
    turns: tuple[int, bool]
    colors: Array
    size: int

    @staticmethod
    def draw(rng: np.random.Generator, size: int) -> Texture:
        """Draw a texture."""
        index, extent, top, left, turns, mirrored, faint, *shift = rng.random(10).tolist()
        dark, light = color(rng), color(rng)
        middle = (dark + light) / 2 + 100 * (np.array(shift) - 0.5)
        contrast = 0.35 if faint < 0.6 else 1.0  # most real surfaces have little
        colors = dark + contrast * (np.array((dark, middle, light)) - dark)
        pixels = size + int(extent * (SIZE + 1 - size))
        cut = int(top * (SIZE + 1 - pixels)), int(left * (SIZE + 1 - pixels)), pixels
        return Texture(int(index * PATTERNS), cut, (int(turns * 4), mirrored < 0.5), colors, size)

    @cached_property
    def image(self) -> Image:
        """The pixels, ``(size, size, 3)``."""
        top, left, extent = self.cut
        turns, mirrored = self.turns
        cut = np.rot90(pattern(self.pattern)[top : top + extent, left : left + extent], turns)
        cut = np.ascontiguousarray(cut[:, ::-1] if mirrored else cut)
        small = cv2.resize(cut, (self.size, self.size), interpolation=cv2.INTER_AREA)
        dark, middle, light = self.colors
        palette = np.where(RAMP < 0.5, dark + 2 * RAMP * (middle - dark), middle + (2 * RAMP - 1) * (light - middle))
        return np.asarray(cv2.applyColorMap(small, palette.clip(0, 255).astype(np.uint8)[:, None]))


@lru_cache(maxsize=PATTERNS)
def pattern(index: int) -> Image:
    """Return one of the shared patterns, ``(SIZE, SIZE)``."""
    rng = np.random.default_rng([20, index])
    gray = _PATTERNS[index % len(KINDS)](rng)
    low, high = gray.min(), gray.max()
    return ((gray - low) * (255 / (high - low + 1e-9))).astype(np.uint8)


def noise(rng: np.random.Generator, falloff: float, size: int = SIZE) -> Array:
    """Draw noise whose amplitude falls with this power of the frequency, from 0 to 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency**falloff
    gray = np.fft.irfft2(spectrum, s=(size, size))
    return (gray - gray.min()) / (gray.max() - gray.min())


def _noise(rng: np.random.Generator) -> Array:
    return noise(rng, rng.uniform(0.8, 2.0))


def _leaves(rng: np.random.Generator) -> Array:
    gray = np.zeros((SIZE, SIZE))
    for _ in range(250):
        radius = int(3 / rng.uniform(0.04, 1) ** 0.9)
        center = tuple(int(v) for v in rng.integers(0, SIZE, 2))
        axes = radius, max(1, int(radius * rng.uniform(0.4, 1)))
        cv2.ellipse(gray, center, axes, rng.uniform(0, 180), 0, 360, rng.random(), -1, cv2.LINE_AA)
    return gray


def _fractal(rng: np.random.Generator) -> Array:
    """Draw the escape times of a Julia set."""
    angle, zoom = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.4)
    axis = np.linspace(-1.5, 1.5, SIZE) * zoom
    z = axis[None, :] + 1j * axis[:, None]
    constant = 0.7885 * np.exp(1j * angle)
    steps = np.zeros((SIZE, SIZE))
    for _ in range(28):
        z = np.where(np.abs(z) < 4, z * z + constant, z)
        steps += np.abs(z) < 4
    return np.sqrt(steps) + 0.5 * noise(rng, 1.5)


def _stripes(rng: np.random.Generator) -> Array:
    angle, count = rng.uniform(0, math.pi), rng.uniform(3, 16)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    wave = np.sin(2 * math.pi * count * (math.cos(angle) * x + math.sin(angle) * y) + 3 * noise(rng, 2.0))
    return np.tanh(rng.uniform(1, 8) * wave) + 0.3 * noise(rng, 1.2)


def _checks(rng: np.random.Generator) -> Array:
    width, height = rng.integers(10, 50, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    shift = (width // 2) * ((y // height) % 2) if rng.random() < 0.5 else 0  # bricks or tiles
    joints = ((x + shift) % width < 2) | (y % height < 2)
    tone = rng.random((SIZE // int(height) + 2, SIZE // int(width) + 3))[y // height, (x + shift) // width]
    return np.where(joints, rng.random(), tone) + 0.4 * noise(rng, 1.0)


def _gradient(rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return math.cos(angle) * x + math.sin(angle) * y + 0.25 * noise(rng, 1.3)


def _cells(rng: np.random.Generator) -> Array:
    seeds = rng.random((int(rng.integers(12, 80)), 2)) * 64
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1])
    tone = rng.random(len(seeds))[distance.argmin(axis=-1)]
    return cv2.resize(tone + 0.02 * distance.min(axis=-1), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def _cloth(rng: np.random.Generator) -> Array:
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    first, second = rng.uniform(20, 60, 2)
    weave = np.sin(2 * math.pi * first * x) * np.sin(2 * math.pi * second * y)
    return noise(rng, 1.8) + rng.uniform(0.02, 0.12) * weave


_PATTERNS = (_noise, _leaves, _fractal, _stripes, _checks, _gradient, _cells, _cloth)
