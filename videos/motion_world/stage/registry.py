"""A motion as a class of the data set, and the words of the tables of motions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .curves import Channels, Value
from .scenes import Actors, Scene


@dataclass(frozen=True)
class Motion:
    """A class of motion world.

    Args:
        name: of the class.
        verb: what happens. Classes of one verb are always in one split.
        scene: what is drawn, forward in time.
        family: "solo", "duo", "table", "shape" or "path".
        backward: run the scene from its end to its start.
        reversal: name of the class that is the time reversal, or None if there is none or it is the class itself.
        chiral: left and right belong to the class, so it is never mirrored.
    """

    name: str
    verb: str
    scene: Scene
    family: str = ""
    backward: bool = False
    reversal: str | None = None
    chiral: bool = False


def pair(name: str, reversed_name: str, scene: Scene, verb: str = "", chiral: bool = False) -> tuple[Motion, Motion]:
    """Return a motion and its time reversal."""
    forward = Motion(name, verb or name, scene, reversal=reversed_name, chiral=chiral)
    return forward, replace(forward, name=reversed_name, backward=True, reversal=name)


def alone(name: str, scene: Scene, verb: str = "", chiral: bool = False) -> tuple[Motion]:
    """Return a motion that has no reversal, or is its own."""
    return (Motion(name, verb or name, scene, chiral=chiral),)


FRONT = math.pi / 2
"""Heading of a body that faces the viewer."""


def family(name: str, *motions: tuple[Motion, ...]) -> tuple[Motion, ...]:
    """Return the motions of a family."""
    return tuple(replace(motion, family=name) for group in motions for motion in group)


def solo(**channels: Value) -> Actors:
    """Return the scene of one body."""
    return Actors(channels)


def both(**channels: Value) -> Channels:
    """Return channels that are the same for the left and the right limb, such as ``arm_l`` and ``arm_r``."""
    return {f"{name}_{side}": value for name, value in channels.items() for side in "lr"}
