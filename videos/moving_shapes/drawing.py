"""Drawing of textured shapes on textured backgrounds: the stills of tiny-clip and the frames of moving shapes.

A picture is a pose (position, size and angle, which may change between frames) and an appearance (drawn at random,
constant in a clip). Nuisances without meaning are added: a static distractor, a gain and a color cast for each frame,
a slow drift of color, noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SHAPES = ("disc", "square", "triangle", "cross", "bar", "corner")
TEXTURES = ("plain", "halved", "striped", "checkered")
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.12, 0.25, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "magenta": (0.90, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.90),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
FRAME_GAIN, FRAME_CAST, COLOR_DRIFT, PIXEL_NOISE = 0.2, 0.1, 0.2, 0.02


@dataclass(frozen=True)
class Poses:
    """Poses of ``n`` shapes in ``T`` frames, each ``(n, T)``. The picture spans -1 to 1, and y points down.

    ``size`` is half the shape's extent. ``angle`` is in radians, clockwise on the screen, and 0 points up.
    """

    x: Tensor
    y: Tensor
    size: Tensor
    angle: Tensor


@dataclass(frozen=True)
class Look:
    """Contents of pictures: names of shapes, textures and colors, and the brightness of a ground at its darkest."""

    shapes: tuple[str, ...] = SHAPES
    textures: tuple[str, ...] = TEXTURES
    colors: tuple[str, ...] = tuple(COLORS)
    ground: float = 0.3


LOOKS = {
    "any": Look(),
    "dark": Look(("disc", "triangle", "bar"), ("plain", "striped"), ("red", "yellow", "magenta", "white"), 0.1),
    "bright": Look(("square", "cross", "corner"), ("halved", "checkered"), ("green", "blue", "cyan", "black"), 0.6),
}
"""All pictures, and two kinds that share no shape, texture or color, on grounds of other brightness."""


@dataclass(frozen=True)
class Appearance:
    """Appearance of ``n`` shapes, each ``(n,)``: indices into ``SHAPES``, ``TEXTURES``, ``COLORS`` (two different)."""

    shape: Tensor
    texture: Tensor
    color: Tensor
    second_color: Tensor
    look: Look = LOOKS["any"]


def random_appearance(count: int, generator: Generator, look: Look = LOOKS["any"]) -> Appearance:
    """Draw appearances of a look uniformly and independently, except that the two colors differ."""
    colors, number = _indices(look.colors, tuple(COLORS)), len(look.colors)
    color = torch.randint(number, (count,), generator=generator)
    shift = torch.randint(1, number, (count,), generator=generator)
    return Appearance(
        shape=_chosen(_indices(look.shapes, SHAPES), count, generator),
        texture=_chosen(_indices(look.textures, TEXTURES), count, generator),
        color=colors[color],
        second_color=colors[(color + shift) % number],
        look=look,
    )


def _indices(names: Sequence[str], known: Sequence[str]) -> Tensor:
    return torch.tensor([known.index(name) for name in names])


def _chosen(indices: Tensor, count: int, generator: Generator) -> Tensor:
    return indices[torch.randint(len(indices), (count,), generator=generator)]


def draw(poses: Poses, appearance: Appearance, pixels: int, generator: Generator) -> Tensor:
    """Draw uint8 frames ``(n, T, 3, pixels, pixels)``. The nuisances are drawn from ``generator``."""
    count, frames = poses.x.shape
    uniform = _Uniform(count, generator)
    inside, u, v = _rasterize(poses, appearance.shape, pixels)
    palette = torch.tensor(list(COLORS.values()))
    first, second = palette[appearance.color], palette[appearance.second_color]
    first, second = (_drifting(color, uniform, frames) for color in (first, second))
    pattern = _pattern(appearance.texture, u, v)
    shading = 1 - 0.35 * v.clamp(-1, 1)[:, :, None]  # the lighter end is the upper one for every shape and texture
    shape = (pattern * first + (1 - pattern) * second) * shading
    picture = torch.lerp(_background(uniform, frames, pixels, appearance.look), shape, inside[:, :, None])
    gain = 1 + FRAME_GAIN * uniform.signed(frames, 1, 1, 1)
    cast = FRAME_CAST * uniform.signed(frames, 3, 1, 1)
    picture = picture * gain + cast
    picture = picture + PIXEL_NOISE * torch.randn(picture.shape, generator=generator)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


class _Uniform:
    """Source of uniform random tensors whose first dimension is the number of pictures."""

    def __init__(self, count: int, generator: Generator) -> None:
        self.count, self.generator = count, generator

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(self.count, *shape, generator=self.generator)

    def signed(self, *shape: int) -> Tensor:
        return self(*shape) * 2 - 1


def _drifting(color: Tensor, uniform: _Uniform, frames: int) -> Tensor:
    """Let a color ``(n, 3)`` change linearly over the clip, in a random direction: ``(n, T, 3, 1, 1)``."""
    time = torch.linspace(-0.5, 0.5, frames) if frames > 1 else torch.zeros(1)
    return color[:, None, :, None, None] + COLOR_DRIFT * uniform.signed(1, 3, 1, 1) * time.view(1, -1, 1, 1, 1)


def _rasterize(poses: Poses, shape: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return coverage and shape coordinates ``u``, ``v`` of every pixel, each ``(n, T, pixels, pixels)``."""
    axis = (torch.arange(pixels) + 0.5) / pixels * 2 - 1
    x = axis[None, None, None, :] - poses.x[:, :, None, None]
    y = axis[None, None, :, None] - poses.y[:, :, None, None]
    cos, sin, size = (value[:, :, None, None] for value in (poses.angle.cos(), poses.angle.sin(), poses.size))
    u, v = (cos * x + sin * y) / size, (cos * y - sin * x) / size
    depth = _depth_inside(shape, u, v) * size * pixels / 2  # in pixels, for an edge one pixel wide
    return torch.sigmoid(3 * depth), u, v


def _depth_inside(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the signed depth of points inside their shape, in units of its size. The tip is at negative ``v``."""

    def box(x: float, y: float, width: float, height: float) -> Tensor:
        return torch.minimum(width - (u - x).abs(), height - (v - y).abs())

    depths = (
        1 - (u.square() + v.square()).sqrt(),
        box(0, 0, 0.85, 0.85),
        torch.minimum(0.7 - v, (v + 1.0 - 1.7 * u.abs()) * 0.5),
        torch.maximum(box(0, 0, 0.33, 1.0), box(0, 0, 1.0, 0.33)),
        box(0, 0, 0.42, 1.1),
        torch.maximum(box(-0.45, 0, 0.35, 0.95), box(0, 0.6, 0.8, 0.35)),
    )
    return _select(shape, depths)


def _select(index: Tensor, options: Sequence[Tensor]) -> Tensor:
    """Return the option ``(n, T, pixels, pixels)`` that the index ``(n,)`` names for each picture."""
    result = options[0]
    for number, option in enumerate(options[1:], start=1):
        result = torch.where((index == number)[:, None, None, None], option, result)
    return result


def _pattern(texture: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the share of the first color at every pixel: ``(n, T, 1, pixels, pixels)``."""

    def soft(wave: Tensor) -> Tensor:
        return torch.sigmoid(8 * wave)

    patterns = (torch.ones_like(u), soft(-v), soft((5.0 * v).sin()), soft((4.5 * u).sin() * (4.5 * v).sin() * 2))
    return _select(texture, patterns)[:, :, None]


def _background(uniform: _Uniform, frames: int, pixels: int, look: Look) -> Tensor:
    """Draw a smooth random ground with a small plain static distractor: ``(n, T, 3, pixels, pixels)``."""
    clouds = F.interpolate(uniform(3, 5, 5), size=(pixels, pixels), mode="bicubic", align_corners=False) - 0.5
    ground = look.ground + 0.3 * uniform(3)[:, :, None, None] + 0.3 * clouds
    kind = _chosen(_indices(look.shapes, SHAPES), uniform.count, uniform.generator)
    distractor = Poses(0.9 * uniform.signed(1), 0.9 * uniform.signed(1), 0.07 + 0.06 * uniform(1), 6.2832 * uniform(1))
    inside, _, _ = _rasterize(distractor, kind, pixels)
    ground = torch.lerp(ground, uniform(3)[:, :, None, None].expand_as(ground), inside)
    time = torch.linspace(-0.5, 0.5, frames).view(1, -1, 1, 1, 1) if frames > 1 else 0.0
    return ground[:, None] + COLOR_DRIFT * uniform.signed(1, 3, 1, 1) * time
