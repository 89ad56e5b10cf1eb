"""Scenes: the declarative forms of motions. Each turns curves into the layers of a clip, for any cast.

The cast (looks, sizes, place, view) is drawn before the scene is known and never depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...moving_shapes.motions import Jitter
from ...moving_shapes.motions import Motion as Path
from .bodies import BodyLook, Stand, body
from .curves import Array, Channels, Tempo, Value, at, curve
from .layers import Layer, frames, moved
from .textures import Texture, color
from .things import HandLook, ThingLook, container, hand, thing


@dataclass(frozen=True)
class Cast:
    """All that a clip shows apart from its motion and its camera.

    Args:
        bodies, things, hands: looks of the possible actors. A scene uses the first ones.
        alive: a body instead of a thing travels along a path.
        yaw, pitch: direction of the view on bodies, in radians.
        place, size, mirrored: place, size and handedness of the scene in the picture.
        floor, floor_paint, floor_pattern: whether a floor or table is seen, and its paint.
        level: height of the table's edge.
    """

    bodies: tuple[BodyLook, ...]
    things: tuple[ThingLook, ...]
    hands: tuple[HandLook, ...]
    alive: bool
    yaw: float
    pitch: float
    place: Array
    size: float
    mirrored: bool
    floor: bool
    floor_paint: Array
    floor_pattern: Texture | None
    level: float

    @staticmethod
    def draw(rng: np.random.Generator) -> Cast:
        """Draw a cast."""
        patterned = Texture.draw(rng, 128)
        return Cast(
            bodies=tuple(BodyLook.draw(rng) for _ in range(2)),
            things=tuple(ThingLook.draw(rng) for _ in range(4)),
            hands=tuple(HandLook.draw(rng) for _ in range(2)),
            alive=bool(rng.random() < 0.3),
            yaw=rng.uniform(-0.55, 0.55),
            pitch=rng.uniform(0.0, 0.35),
            place=rng.uniform(-0.16, 0.16, 2),
            size=rng.uniform(0.8, 1.25),
            mirrored=bool(rng.random() < 0.5),
            floor=bool(rng.random() < 0.6),
            floor_paint=color(rng),
            floor_pattern=patterned if rng.random() < 0.7 else None,
            level=rng.uniform(-0.2, 0.35),
        )


class Scene(Protocol):
    """A motion that any cast can act."""

    def layers(self, cast: Cast, times: Array, tempo: Tempo) -> list[Layer]:
        """Return the layers at the times ``(T,)``, before the place and size of the cast are applied."""
        ...


@dataclass(frozen=True)
class Item:
    """A thing of a scene.

    Args:
        moves: its channels, as in `THING_AT_REST`.
        look: which of the cast's things it is.
        part: as in `thing`, or "container".
        held: share of its place that is taken from a joint of the first body, 1 while it is held.
        joint: name of the joint.
    """

    moves: Channels
    look: int = 0
    part: str = "whole"
    held: Value | None = None
    joint: str = "hand_r"

    def layers(self, cast: Cast, times: Array, tempo: Tempo, joints: dict[str, Array] | None = None) -> list[Layer]:
        """Return the layers of the thing."""
        channels = {"x": np.zeros_like(times), **at(self.moves, times, tempo)}
        if self.held is not None and joints is not None:
            held = curve(self.held)(times, tempo)
            y = channels.get("y", np.zeros_like(times))
            channels["x"] = held * joints[self.joint][:, 0] + (1 - held) * channels["x"]
            channels["y"] = held * joints[self.joint][:, 1] + (1 - held) * y
        look = cast.things[self.look]
        return container(look, channels) if self.part == "container" else thing(look, channels, self.part)


@dataclass(frozen=True)
class Actors:
    """One or two bodies on the ground, with things.

    Args:
        first: channels of the first body, as in `AT_REST`.
        second: channels of the second body, which faces the first one.
        gap: distance of the two bodies, in world units.
        same_way: the second body faces the same way as the first one.
        items: things of the scene.
    """

    first: Channels
    second: Channels | None = None
    gap: float = 1.0
    same_way: bool = False
    items: tuple[Item, ...] = ()

    GROUND = 0.72

    def layers(self, cast: Cast, times: Array, tempo: Tempo) -> list[Layer]:
        """Return the layers of the bodies, the things and the ground."""
        still = {"advance": np.zeros_like(times)}
        two = self.second is not None
        yaw = 0.6 * cast.yaw if two else cast.yaw
        stand = Stand(self.GROUND, -self.gap / 2 if two else 0.0, 0.0, yaw, cast.pitch)
        layers, joints = body(cast.bodies[0], still | at(self.first, times, tempo), stand)
        if self.second is not None:
            heading = 0.0 if self.same_way else math.pi
            stand = Stand(self.GROUND, self.gap / 2, heading, yaw, cast.pitch, depth=0.5)
            more, other = body(cast.bodies[1], still | at(self.second, times, tempo), stand)
            joints |= {f"other_{name}": place for name, place in other.items()}
            layers += more
        for item in self.items:
            layers += item.layers(cast, times, tempo, joints)
        return _floor(cast, self.GROUND - 0.25 * cast.pitch - 0.1, len(times)) + layers


@dataclass(frozen=True)
class Table:
    """Things on a table or in the air, moved by up to two hands.

    Args:
        items: things of the scene.
        hands: channels of the hands, as in `HAND_AT_REST`.
    """

    items: tuple[Item, ...]
    hands: tuple[Channels, ...] = ()

    def layers(self, cast: Cast, times: Array, tempo: Tempo) -> list[Layer]:
        """Return the layers of the things, the hands and the table."""
        layers = _floor(cast, cast.level, len(times))
        for item in self.items:
            layers += item.layers(cast, times, tempo)
        for look, channels in zip(cast.hands, self.hands, strict=False):
            layers += hand(look, {"x": np.zeros_like(times), **at(channels, times, tempo)})
        return layers


@dataclass(frozen=True)
class Wander:
    """A thing or a body that travels along a path of moving shapes."""

    path: Path

    def layers(self, cast: Cast, times: Array, tempo: Tempo) -> list[Layer]:
        """Return the layers of the traveller and the floor."""
        reach, rate, heading, phase = (
            torch.tensor([[value]], dtype=torch.float64)
            for value in (tempo.reach, tempo.rate, 2 * tempo.onset, 2 * math.pi * tempo.phase)
        )
        offsets = self.path.offsets(torch.from_numpy(2 * times - 1), Jitter(reach, rate, heading, phase))
        x, y, log_size, angle = (value[0].numpy() for value in (offsets.x, offsets.y, offsets.log_size, offsets.angle))
        where = np.stack((x, y), axis=-1)
        if cast.alive:
            still = {"advance": np.zeros_like(times)}
            actor, _ = body(cast.bodies[0], still, Stand(0.5, 0.0, 0.0, cast.yaw, cast.pitch))
            scale = 0.75
        else:
            actor = thing(cast.things[0], {"x": np.zeros_like(times)})
            scale = 1.3
        maps = frames(where, angle, scale * np.exp(log_size), scale * np.exp(log_size))
        return _floor(cast, cast.level, len(times)) + [moved(layer, maps) for layer in actor]


def _floor(cast: Cast, level: float, times: int) -> list[Layer]:
    if not cast.floor:
        return []
    corners = np.array([[-6.0, level], [6.0, level], [6.0, level + 6], [-6.0, level + 6]])
    points = np.broadcast_to(corners, (times, 4, 2))
    frame = frames(np.broadcast_to([0.0, level + 1.0], (times, 2)), 0.0, 1.8, 1.0)
    return [Layer(points, cast.floor_paint, np.full(times, 50.0), cast.floor_pattern, frame)]


def stage(layers: list[Layer], cast: Cast, times: int, chiral: bool) -> list[Layer]:
    """Return the layers at the place, in the size and in the handedness of the cast. Chiral motions keep theirs."""
    mirror = -1.0 if cast.mirrored and not chiral else 1.0
    maps = np.broadcast_to([[mirror * cast.size, 0, cast.place[0]], [0, cast.size, cast.place[1]]], (times, 2, 3))
    return [moved(layer, maps) for layer in layers]
