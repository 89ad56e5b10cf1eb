"""Layers: polygons that move over a clip, each with a paint and a depth. All pictures are made of them.

World coordinates: the picture spans -1 to 1 on both axes, y points down. Arrays start with the time ``T``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .curves import Array
from .textures import Texture

_ANGLES = np.linspace(-math.pi / 2, math.pi / 2, 6), np.arange(18) * (2 * math.pi / 18)
HALF_CIRCLE, CIRCLE = (np.stack((np.cos(angles), np.sin(angles)), axis=-1) for angles in _ANGLES)


@dataclass(frozen=True)
class Layer:
    """A moving polygon.

    Args:
        points: ``(T, P, 2)`` in world coordinates.
        color: red, green and blue, 0 to 255.
        depth: ``(T,)`` order of drawing, the largest first.
        texture: replaces the color.
        frame: ``(T, 2, 3)`` map from the texture's square, -1 to 1, to world coordinates. Needed with a texture.
        opacity: ``(T,)`` from 0 to 1; None is opaque.
    """

    points: Array
    color: Array
    depth: Array
    texture: Texture | None = None
    frame: Array | None = None
    opacity: Array | None = None


def capsules(start: Array, end: Array, start_radius: Array | float, end_radius: Array | float) -> Array:
    """Return limbs: tapered bars with round ends between points ``(T, 2)``, as ``(T, 12, 2)``."""
    along = end - start
    along = along / np.sqrt((along * along).sum(axis=1, keepdims=True) + 1e-12)
    basis = np.empty((len(start), 2, 2))
    basis[:, 0], basis[:, 1, 0], basis[:, 1, 1] = along, -along[:, 1], along[:, 0]
    circle = HALF_CIRCLE @ basis
    points = np.empty((len(start), 2 * len(HALF_CIRCLE), 2))
    points[:, : len(HALF_CIRCLE)] = end[:, None] + np.reshape(end_radius, (-1, 1, 1)) * circle
    points[:, len(HALF_CIRCLE) :] = start[:, None] - np.reshape(start_radius, (-1, 1, 1)) * circle
    return points


def ellipses(center: Array, width: Array | float, height: Array | float, angle: Array | float = 0.0) -> Array:
    """Return ellipses around points ``(T, 2)``, as ``(T, 18, 2)``."""
    axes = frames(center, angle, width, height)
    return apply(axes, CIRCLE)


def frames(
    center: Array, angle: Array | float, width: Array | float, height: Array | float, shear: Array | float = 0.0
) -> Array:
    """Return maps ``(T, 2, 3)`` from a unit square to a scaled, sheared, rotated and shifted one."""
    cos, sin = np.cos(angle), np.sin(angle)
    maps = np.empty((len(center), 2, 3))
    maps[:, 0, 0], maps[:, 0, 1] = cos * width, cos * shear * width - sin * height
    maps[:, 1, 0], maps[:, 1, 1] = sin * width, sin * shear * width + cos * height
    maps[:, :, 2] = center
    return maps


def apply(maps: Array, points: Array) -> Array:
    """Return points ``(P, 2)`` or ``(T, P, 2)`` after the maps ``(T, 2, 3)``."""
    return points @ maps[:, :, :2].transpose(0, 2, 1) + maps[:, None, :, 2]


def compose(outer: Array, inner: Array) -> Array:
    """Return the maps that apply ``inner`` and then ``outer``, all ``(T, 2, 3)`` or ``(2, 3)``."""
    maps = outer[..., :2] @ inner
    maps[..., 2] += outer[..., 2]
    return maps


def moved(layer: Layer, maps: Array) -> Layer:
    """Return a layer after maps ``(T, 2, 3)`` of the world."""
    frame = None if layer.frame is None else compose(maps, layer.frame)
    return Layer(apply(maps, layer.points), layer.color, layer.depth, layer.texture, frame, layer.opacity)
