"""Things and hands: their looks, and their layers for given channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .curves import Array
from .layers import CIRCLE, Layer, apply, capsules, ellipses, frames
from .textures import Texture, color, skin_color

SHAPES = ("disc", "box", "polygon", "star", "bottle", "cup", "blob", "ring")
OUTLINE_POINTS = 40
THING_AT_REST = {
    "x": 0.0, "y": 0.0, "angle": 0.0, "wide": 1.0, "tall": 1.0, "shear": 0.0, "size": 1.0,
    "bend": 0.0, "fold": 0.0, "crumple": 0.0, "opacity": 1.0, "depth": 0.0,
}  # fmt: skip
"""Channels of a thing and their values at rest. Lengths are in world units; bend and fold act along the width."""
HAND_AT_REST = {"x": 0.0, "y": 0.0, "open": 0.3, "turn": 0.0, "depth": 0.0}
"""Channels of a hand and their values at rest: the point that it grasps, its fingers and its turn about that point."""


@dataclass(frozen=True)
class ThingLook:
    """Shape and paint of a thing. The outline ``(P, 2)`` is about 1 in radius; ``radius`` is its size in the world."""

    shape: int
    outline: Array
    radius: float
    paint: Array
    label: Array
    label_size: float
    pattern: Texture | None
    wrinkles: Array

    @staticmethod
    def draw(rng: np.random.Generator) -> ThingLook:
        """Draw a thing."""
        shape, aspect = int(rng.integers(len(SHAPES))), rng.uniform(0.7, 1.3)
        dressed = Texture.draw(rng, 48)
        return ThingLook(
            shape=shape,
            outline=_outline(SHAPES[shape], rng) * [aspect**0.5, aspect**-0.5],
            radius=rng.uniform(0.18, 0.29),
            paint=color(rng),
            label=color(rng),
            label_size=rng.uniform(0.3, 0.6),
            pattern=dressed if rng.random() < 0.55 else None,
            wrinkles=rng.uniform(0.2, 1.0, OUTLINE_POINTS),
        )


def _outline(shape: str, rng: np.random.Generator) -> Array:
    """Return the outline of a shape around the origin, its points in equal distances."""
    around = np.arange(OUTLINE_POINTS) * (2 * math.pi / OUTLINE_POINTS)
    corners = int(rng.integers(3, 8))
    waves, phase = rng.uniform(0, 0.18, 3), rng.uniform(0, 2 * math.pi, 3)
    width = rng.uniform(0.5, 0.75)
    if shape in ("disc", "ring", "blob"):
        radius = 1 + sum(waves[k] * np.sin((k + 2) * around + phase[k]) for k in range(3)) * (shape == "blob")
        return np.stack((radius * np.cos(around), radius * np.sin(around)), axis=-1)
    angles = np.arange(2 * corners if shape == "star" else corners) * (math.pi if shape == "star" else 2 * math.pi)
    angles = angles / corners + phase[0]
    radii = np.where(np.arange(len(angles)) % 2, 0.5, 1.1) if shape == "star" else 1.0
    vertices = {
        "box": np.array([[-1, -0.75], [1, -0.75], [1, 0.75], [-1, 0.75]]),
        "polygon": np.stack((np.cos(angles), np.sin(angles)), axis=-1),
        "star": np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=-1),
        "bottle": np.array(
            [
                [-0.2, -1.3],
                [0.2, -1.3],
                [0.2, -0.8],
                [width, -0.4],
                [width, 1],
                [-width, 1],
                [-width, -0.4],
                [-0.2, -0.8],
            ]
        ),
        "cup": np.array([[-0.95, -1], [0.95, -1], [width, 1], [-width, 1]]),
    }[shape]
    return _resampled(vertices)


def _resampled(vertices: Array) -> Array:
    closed = np.concatenate((vertices, vertices[:1]))
    length = np.concatenate(([0], np.linalg.norm(np.diff(closed, axis=0), axis=-1).cumsum()))
    places = np.linspace(0, length[-1], OUTLINE_POINTS, endpoint=False)
    return np.stack([np.interp(places, length, closed[:, k]) for k in range(2)], axis=-1)


def thing(look: ThingLook, channels: dict[str, Array], part: str = "whole") -> list[Layer]:
    """Return the layers of a thing, for channels as in `THING_AT_REST`.

    Args:
        look: of the thing.
        channels: values over time.
        part: "whole", or a half or quarter such as "left" or "left top", of it or of a "sheet" of its paint.
    """
    times = next(iter(channels.values())).shape
    c = {name: channels.get(name, np.full(times, value)) for name, value in THING_AT_REST.items()}
    size = look.radius * c["size"]
    center = np.stack((c["x"], c["y"]), axis=-1)
    frame = frames(center, c["angle"], size * c["wide"], size * c["tall"], c["shear"])
    whole = SHEET if "sheet" in part.split() else look.outline
    soft = not {"bend", "fold", "crumple"}.isdisjoint(channels)

    def placed(points: Array) -> Array:
        return apply(frame, _deformed(points, c, look.wrinkles) if soft else points)

    outline = _cut(whole, part)
    inner = _cut(whole * [look.label_size, 0.5 * look.label_size] + [0.0, -0.3 * look.label_size], part)
    opacity = channels.get("opacity")
    return [
        Layer(placed(outline * 1.09), look.paint * 0.45, c["depth"] + 1e-3, opacity=opacity),
        Layer(placed(outline), look.paint, c["depth"], look.pattern, frame, opacity),
        Layer(placed(inner), look.label, c["depth"] - 1e-3, opacity=opacity),
    ]


def _cut(points: Array, part: str) -> Array:
    """Return the outline of a half or quarter of a shape around the origin."""
    x, y = points[:, 0], points[:, 1]
    for word in part.split():
        if word in ("left", "right"):
            x = x.clip(None, 0) if word == "left" else x.clip(0, None)
        elif word in ("top", "bottom"):
            y = y.clip(None, 0) if word == "top" else y.clip(0, None)
    return np.stack((x, y), axis=-1)


def _deformed(points: Array, c: dict[str, Array], wrinkles: Array) -> Array:
    """Return the points ``(T, P, 2)`` after crumpling, folding and bending."""
    shrink = 1 - 0.75 * c["crumple"][:, None] * wrinkles
    x, y = points[:, 0] * shrink, points[:, 1] * shrink
    fold = math.pi * c["fold"][:, None]
    y = np.where(x > 0, y - 0.6 * x * np.sin(fold), y)
    x = np.where(x > 0, x * np.cos(fold), x)
    bend = np.where(np.abs(c["bend"]) < 1e-3, 1e-3, c["bend"])[:, None]
    angle, slenderness = bend * x, (c["wide"] / c["tall"])[:, None]
    along = np.sin(angle) / bend - y * np.sin(angle) / slenderness
    return np.stack((along, slenderness * (1 - np.cos(angle)) / bend + y * np.cos(angle)), axis=-1)


SHEET = _resampled(np.array([[-1.0, -0.8], [1.0, -0.8], [1.0, 0.8], [-1.0, 0.8]]))


@dataclass(frozen=True)
class HandLook:
    """Size, color and direction of a hand. The arm leaves the picture at ``angle``, 0 downward."""

    width: float
    angle: float
    skin: Array
    sleeve: Array
    bare: float
    pattern: Texture | None

    @staticmethod
    def draw(rng: np.random.Generator) -> HandLook:
        """Draw a hand."""
        dressed = Texture.draw(rng, 48)
        return HandLook(
            width=rng.uniform(0.07, 0.11),
            angle=rng.uniform(-0.9, 0.9),
            skin=skin_color(rng),
            sleeve=color(rng),
            bare=rng.uniform(0.1, 0.6),
            pattern=dressed if rng.random() < 0.4 else None,
        )


def hand(look: HandLook, channels: dict[str, Array]) -> list[Layer]:
    """Return the layers of a hand and its arm, for channels as in `HAND_AT_REST`. Its fingers are before a thing."""
    times = next(iter(channels.values())).shape
    c = {name: channels.get(name, np.full(times, value)) for name, value in HAND_AT_REST.items()}
    w, angle, spread = look.width, look.angle + c["turn"], c["open"]
    toward_arm = np.stack((np.sin(angle), np.cos(angle)), axis=-1)
    across = np.stack((np.cos(angle), -np.sin(angle)), axis=-1)
    grasp = np.stack((c["x"], c["y"]), axis=-1)
    palm, wrist = grasp + 0.9 * w * toward_arm, grasp + 2.0 * w * toward_arm
    cuff, end = wrist + look.bare * toward_arm, wrist + 4 * toward_arm
    behind, front = c["depth"] + 0.05, c["depth"] - 0.05
    cuff_frame = frames((cuff + end) / 2, -angle, 3 * w, 2.0)
    layers = [
        Layer(capsules(wrist, cuff, 0.75 * w, 0.95 * w), look.skin * 0.93, behind + 2e-3),
        Layer(capsules(cuff, end, 1.2 * w, 2.2 * w), look.sleeve, behind + 1e-3, look.pattern, cuff_frame),
        Layer(ellipses(palm, 0.95 * w, 1.15 * w, -angle), look.skin, behind),
    ]
    for k, side in enumerate((-0.75, -0.25, 0.25, 0.75)):
        root = palm + side * w * across
        fan = side * (0.25 + 0.6 * spread)
        reach = (0.9 + 0.9 * spread) * w
        tip = root - reach[:, None] * (np.cos(fan)[:, None] * toward_arm - np.sin(fan)[:, None] * across)
        layers.append(Layer(capsules(root, tip, 0.27 * w, 0.22 * w), look.skin * (0.82 + 0.05 * k), front + 1e-3 * k))
    root = palm + 0.8 * w * across
    tip = root + ((0.5 + 0.5 * spread) * w)[:, None] * across - (0.8 * w) * toward_arm
    layers.append(Layer(capsules(root, tip, 0.3 * w, 0.24 * w), look.skin * 0.88, front - 1e-3))
    return layers


def container(look: ThingLook, channels: dict[str, Array]) -> list[Layer]:
    """Return the layers of an open container. Things at its depth are seen between its inside and its front."""
    times = next(iter(channels.values())).shape
    c = {name: channels.get(name, np.full(times, value)) for name, value in THING_AT_REST.items()}
    size = 1.25 * look.radius * c["size"]
    center = np.stack((c["x"], c["y"]), axis=-1)
    frame = frames(center, c["angle"], size, size)
    opening = CIRCLE * [1.0, 0.25] - [0.0, 0.9]
    lower_edge = opening[opening[:, 1] >= -0.9 - 1e-9]
    front = np.concatenate((lower_edge[np.argsort(-lower_edge[:, 0])], [[-0.75, 1.0], [0.75, 1.0]]))
    return [
        Layer(apply(frame, opening * [1.06, 1.0]), look.paint * 0.3, c["depth"] + 0.3),
        Layer(apply(frame, front), look.paint, c["depth"] - 0.3, look.pattern, frame),
        Layer(apply(frame, front * [0.6, 0.25] + [0, 0.3]), look.label, c["depth"] - 0.301),
    ]
