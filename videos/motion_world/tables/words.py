"""Hands and things: the words of the tables of what hands do to things and what things do to each other."""

from __future__ import annotations

from ..stage.curves import Channels, Value, ramp
from ..stage.scenes import Item

AWAY = 1.3
"""Distance of a hand that is out of the picture."""


def grip(x: Value = 0.0, y: Value = 0.0, **more: Value) -> Channels:
    """Return the channels of a hand that holds a thing at this place by its edge nearest to the arm."""
    return {"x": x, "y": y + 0.1, "open": 0.15, **more}


def leaving(x: Value, y: Value, start: float, end: float) -> Channels:
    """Return the channels of a hand that lets go of a thing at this place and leaves the picture."""
    return {"x": x, "y": y + 0.1 + AWAY * ramp(start, end), "open": 0.15 + 0.85 * ramp(start - 0.05, start + 0.1)}


def lone(**moves: Value) -> Item:
    """Return the first thing of the cast."""
    return Item(moves)


def other(**moves: Value) -> Item:
    """Return the second thing of the cast."""
    return Item(moves, look=1)


def plank(**moves: Value) -> Item:
    """Return a sheet of the first thing's paint."""
    return Item(moves, part="sheet")


def box(**moves: Value) -> Item:
    """Return a container."""
    return Item(moves, look=1, part="container")
