"""Curves: the words in which all motions are written.

A curve is a number that changes over a clip, such as the angle of an elbow. Curves are built from a few basic ones with
``+``, ``-`` and ``*``. The time of a clip runs from 0 to 1. The tempo varies a curve between the clips of a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TEMPO_JITTER, ONSET_JITTER, REACH_JITTER = 0.12, 0.05, 0.14


@dataclass(frozen=True)
class Tempo:
    """Variation between the clips of a class, drawn from the same distributions for all classes.

    Args:
        rate: factor of the frequency of what repeats, near 1.
        phase: phase of what repeats, 0 to 1.
        onset: shift of what happens once, near 0.
        reach: factor of swings, near 1.
    """

    rate: float = 1.0
    phase: float = 0.0
    onset: float = 0.0
    reach: float = 1.0

    @staticmethod
    def draw(rng: np.random.Generator) -> Tempo:
        """Draw a tempo."""
        rate, phase, onset, reach = rng.random(4)
        return Tempo(
            rate=1 + TEMPO_JITTER * (2 * rate - 1),
            phase=phase,
            onset=ONSET_JITTER * (2 * onset - 1),
            reach=1 + REACH_JITTER * (2 * reach - 1),
        )


class Curve:
    """A function of time ``(T,)`` and tempo, with arithmetic."""

    def __init__(self, values: Callable[[Array, Tempo], Array]) -> None:
        self.values = values

    def __call__(self, times: Array, tempo: Tempo) -> Array:
        """Return the values at the times."""
        return np.broadcast_to(self.values(times, tempo), times.shape)

    def __add__(self, other: Curve | float) -> Curve:
        second = curve(other)
        return Curve(lambda t, tempo: self.values(t, tempo) + second.values(t, tempo))

    def __mul__(self, other: Curve | float) -> Curve:
        second = curve(other)
        return Curve(lambda t, tempo: self.values(t, tempo) * second.values(t, tempo))

    def __neg__(self) -> Curve:
        return self * -1.0

    def __sub__(self, other: Curve | float) -> Curve:
        return self + -curve(other)

    def __rsub__(self, other: float) -> Curve:
        return curve(other) - self

    __radd__, __rmul__ = __add__, __mul__


Value = Curve | float
Channels = dict[str, Value]
"""Curves by the name of what they move."""


def curve(value: Value) -> Curve:
    """Return the value as a curve. A number becomes a constant."""
    if isinstance(value, Curve):
        return value
    return Curve(lambda t, tempo: np.full_like(t, value))


def ramp(start: float = 0.1, end: float = 0.85) -> Curve:
    """Return a smooth rise from 0 to 1 between two times."""

    def values(t: Array, tempo: Tempo) -> Array:
        x = ((t - tempo.onset - start) / (end - start)).clip(0, 1)
        return x * x * (3 - 2 * x)

    return Curve(values)


def bump(start: float = 0.12, end: float = 0.88) -> Curve:
    """Return a rise from 0 to 1 and back to 0, symmetric in time."""
    return Curve(lambda t, tempo: np.sin(math.pi * ((t - tempo.onset - start) / (end - start)).clip(0, 1)))


def plateau(start: float, top: float, fall: float, end: float) -> Curve:
    """Return a smooth rise from 0 to 1, a rest there, and a smooth fall to 0."""
    return ramp(start, top) - ramp(fall, end)


def swing(cycles: float, shift: float = 0.0) -> Curve:
    """Return an oscillation from -1 to 1 with a random phase, to which ``shift`` is added (in cycles)."""
    return Curve(lambda t, tempo: tempo.reach * np.sin(2 * math.pi * (cycles * tempo.rate * t + tempo.phase + shift)))


def beat(cycles: float, shift: float = 0.0) -> Curve:
    """Return an oscillation from 0 to 1."""
    return 0.5 + 0.5 * swing(cycles, shift)


def hop(cycles: float, shift: float = 0.0) -> Curve:
    """Return a series of hops: the height of a bouncing ball, from 0 to 1, with this number of landings."""
    return Curve(lambda t, tempo: np.abs(np.sin(math.pi * (cycles * tempo.rate * t + tempo.phase + shift))))


def positive(value: Curve) -> Curve:
    """Return a curve without its negative part."""
    return Curve(lambda t, tempo: value.values(t, tempo).clip(0))


def squared(value: Curve) -> Curve:
    """Return the square of a curve."""
    return value * value


def since(start: float) -> Curve:
    """Return the time since ``start``, and 0 before it."""
    return Curve(lambda t, tempo: (t - tempo.onset - start).clip(0))


def flight(start: float, end: float) -> Curve:
    """Return the height of a thrown thing, from 0 to 1 and back to 0 on a parabola."""

    def values(t: Array, tempo: Tempo) -> Array:
        x = ((t - tempo.onset - start) / (end - start)).clip(0, 1)
        return 4 * x * (1 - x)

    return Curve(values)


def drop(start: float, end: float) -> Curve:
    """Return the fallen share of the height of a thing that falls between two times, from 0 to 1."""
    return Curve(lambda t, tempo: ((t - tempo.onset - start) / (end - start)).clip(0, 1) ** 2)


def cos(value: Curve) -> Curve:
    """Return the cosine of a curve."""
    return Curve(lambda t, tempo: np.cos(value.values(t, tempo)))


def sin(value: Curve) -> Curve:
    """Return the sine of a curve."""
    return Curve(lambda t, tempo: np.sin(value.values(t, tempo)))


time = Curve(lambda t, tempo: t)
"""The time itself."""
turns = Curve(lambda t, tempo: 2 * math.pi * (tempo.rate * t + tempo.phase))
"""The angle of a full turn, from a random start."""


def at(channels: Channels, times: Array, tempo: Tempo) -> dict[str, Array]:
    """Return the values of all channels at the times."""
    return {name: curve(value)(times, tempo) for name, value in channels.items()}
