"""A hundred parametric motions in fifty pairs, and their split into base, validation and novel classes (ours).

Most pairs are a motion and its time reversal. A motion is a path: a function of time in [-1, 1], of jitter and, for
periodic motions, of a random phase. It gives displacement, growth and rotation. The reversal is the path at ``-time``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

AMPLITUDE_JITTER, RATE_JITTER, HEADING_JITTER = 0.12, 0.12, math.radians(6)

# Pairs of each family in the novel split. The families that turn or scale in place have base classes only, because
# they are too small to share.
NOVEL_PAIRS = {
    "translate": 3,
    "arc": 2,
    "orbit": 1,
    "oscillate": 1,
    "zigzag": 1,
    "stop_and_go": 1,
    "accelerate": 1,
    "scale_translate": 1,
    "spin_translate": 1,
}
# Pairs in the validation split: their number and the families to draw from. Each kind has half as many as in novel, for
# a similar difficulty.
VALIDATION_PAIRS = (
    (2, ("translate",)),
    (1, ("arc",)),
    (1, ("orbit", "oscillate", "zigzag")),
    (1, ("stop_and_go", "accelerate")),
    (1, ("scale_translate", "spin_translate")),
)


@dataclass(frozen=True)
class Jitter:
    """Variation between the clips of a motion, each ``(n, 1)``: two factors near 1, a small angle and any angle."""

    amplitude: Tensor
    rate: Tensor
    heading: Tensor
    phase: Tensor


@dataclass(frozen=True)
class Offsets:
    """Motion relative to an unknown start, each ``(n, T)``: position in half pictures (y down), log size, radians.

    For a path, x is along its heading and y to the right of it.
    """

    x: Tensor
    y: Tensor
    log_size: Tensor
    angle: Tensor


_Moves = tuple[Tensor, Tensor, Tensor, Tensor]
Path = Callable[[Tensor, Jitter], _Moves]


@dataclass(frozen=True)
class Motion:
    """A class of moving shapes.

    Args:
        name: such as ``translate_030_slow``. Three digits are a heading in degrees, clockwise from rightward.
        family: kind of path.
        path: maps times ``(T,)`` and jitter to offsets along and across the heading, of log size and of angle.
        heading: in degrees.
        backward: run the path from its end to its start.
        reversal: name of the class that is the time reversal, or None if that is the class itself.
    """

    name: str
    family: str
    path: Path
    heading: float = 0.0
    backward: bool = False
    reversal: str | None = None

    def offsets(self, times: Tensor, jitter: Jitter) -> Offsets:
        """Return the motion at ``times`` ``(T,)`` in [-1, 1] for ``n`` draws of jitter."""
        along, across, log_size, angle = self.path(-times if self.backward else times, jitter)
        heading = math.radians(self.heading) + jitter.heading
        cos, sin = heading.cos(), heading.sin()
        return Offsets(cos * along - sin * across, sin * along + cos * across, log_size, angle)


def random_jitter(count: int, generator: Generator) -> Jitter:
    """Draw the jitter of ``count`` clips from uniform distributions that are the same for all classes."""
    amplitude, rate, heading, phase = torch.rand(4, count, 1, generator=generator, dtype=torch.float64)
    return Jitter(
        amplitude=1 + AMPLITUDE_JITTER * (2 * amplitude - 1),
        rate=1 + RATE_JITTER * (2 * rate - 1),
        heading=HEADING_JITTER * (2 * heading - 1),
        phase=2 * math.pi * phase,
    )


def all_motions() -> tuple[Motion, ...]:
    """Return the 100 classes in a fixed order. Classes ``2i`` and ``2i + 1`` are a pair."""
    return (
        *_translations(),
        *_turns_and_scalings(),
        *_orbits(),
        *_oscillations(),
        *_directed("zigzag", "zigzag", "zigzag", partial(_zigzag, 0.8, 0.13, 3.0), (0, 45, 90, 135)),
        *_directed("stop_and_go", "stop_go", "go_stop", partial(_stop_and_go, 0.8), (0, 90, 180, 270)),
        *_directed("accelerate", "accelerate", "decelerate", partial(_accelerate, 0.8), (45, 135, 225, 315)),
        *_directed("arc", "arc_right", "arc_left", partial(_arc, 0.35), range(0, 360, 60)),
        *_directed("scale_translate", "grow_move", "shrink_move", partial(_line, 0.7, 0.6, 0.0), (0, 90, 180, 270)),
        *_directed("spin_translate", "spin_right", "spin_left", partial(_line, 0.7, 0.0, 2.5), (0, 90, 180, 270)),
    )


def split_motions(seed: int) -> dict[str, tuple[int, ...]]:
    """Return the class indices of ``train`` (64, base), ``val`` (12) and ``test`` (24, novel). Pairs stay together.

    The seed draws the classes; the share of each family is fixed. Novel classes come from the nine families that move
    around, validation classes from five of these in similar shares, and base classes from all eleven.
    """
    generator = torch.Generator().manual_seed(seed)
    motions = all_motions()
    unused: dict[str, list[int]] = {}
    for pair in torch.randperm(len(motions) // 2, generator=generator).tolist():
        unused.setdefault(motions[2 * pair].family, []).append(pair)
    novel = [unused[family].pop() for family, count in NOVEL_PAIRS.items() for _ in range(count)]
    validation: list[int] = []
    for count, families in VALIDATION_PAIRS:
        family = families[int(torch.randint(len(families), (), generator=generator))]
        validation += [unused[family].pop() for _ in range(count)]
    base = [pair for pairs in unused.values() for pair in pairs]
    return {"train": _classes_of_pairs(base), "val": _classes_of_pairs(validation), "test": _classes_of_pairs(novel)}


def _classes_of_pairs(pairs: list[int]) -> tuple[int, ...]:
    return tuple(c for pair in sorted(pairs) for c in (2 * pair, 2 * pair + 1))


def _line(length: float, growth: float, turn: float, times: Tensor, jitter: Jitter) -> _Moves:
    progress = jitter.amplitude * times / 2
    return length * progress, 0 * progress, growth * progress, turn * progress


def _orbit(radius: float, rounds: float, times: Tensor, jitter: Jitter) -> _Moves:
    angle = jitter.phase + math.pi * rounds * jitter.rate * times
    return _displacement(jitter.amplitude * radius * angle.cos(), jitter.amplitude * radius * angle.sin())


def _oscillate(reach: float, periods: float, times: Tensor, jitter: Jitter) -> _Moves:
    wave = (jitter.phase + math.pi * periods * jitter.rate * times).sin()
    return _displacement(jitter.amplitude * reach * wave, 0 * wave)


def _zigzag(length: float, reach: float, periods: float, times: Tensor, jitter: Jitter) -> _Moves:
    triangle = (jitter.phase + math.pi * periods * jitter.rate * times).sin().asin() * (2 / math.pi)
    return _displacement(jitter.amplitude * length / 2 * times, jitter.amplitude * reach * triangle)


def _stop_and_go(length: float, times: Tensor, jitter: Jitter) -> _Moves:
    start = jitter.rate - 1  # stands still until about half the time
    progress = (times - start).clamp(min=0) / (1 - start) - 0.5
    return _displacement(jitter.amplitude * length * progress, 0 * progress)


def _accelerate(length: float, times: Tensor, jitter: Jitter) -> _Moves:
    progress = ((times + 1) / 2) ** (2 * jitter.rate) - 0.5
    return _displacement(jitter.amplitude * length * progress, 0 * progress)


def _arc(radius: float, times: Tensor, jitter: Jitter) -> _Moves:
    angle = math.pi / 2 * jitter.rate * times  # about half a circle, with the heading at its middle
    return _displacement(jitter.amplitude * radius * angle.sin(), jitter.amplitude * radius * (1 - angle.cos()))


def _displacement(along: Tensor, across: Tensor) -> _Moves:
    return along, across, torch.zeros_like(along), torch.zeros_like(along)


def _pair(family: str, path: Path, name: str, reversed_name: str, heading: float = 0.0) -> tuple[Motion, Motion]:
    return (
        Motion(name, family, path, heading, backward=False, reversal=reversed_name),
        Motion(reversed_name, family, path, heading, backward=True, reversal=name),
    )


def _directed(
    family: str, name: str, reversed_name: str, path: Path, headings: range | tuple[int, ...], speed: str = ""
) -> list[Motion]:
    """Return pairs in several directions. The reversal has the opposite heading."""
    motions: list[Motion] = []
    for heading in headings:
        opposite = (heading + 180) % 360
        names = f"{name}_{heading:03d}{speed}", f"{reversed_name}_{opposite:03d}{speed}"
        motions += _pair(family, path, *names, heading)
    return motions


def _translations() -> list[Motion]:
    motions: list[Motion] = []
    for speed, length in (("slow", 0.5), ("fast", 1.0)):
        path = partial(_line, length, 0.0, 0.0)
        motions += _directed("translate", "translate", "translate", path, range(0, 180, 30), f"_{speed}")
    return motions


def _turns_and_scalings() -> list[Motion]:
    motions: list[Motion] = []
    for speed, turn, growth in (("slow", 1.4, 0.4), ("fast", 3.2, 0.75)):
        motions += _pair("rotate", partial(_line, 0.0, 0.0, turn), f"rotate_right_{speed}", f"rotate_left_{speed}")
        motions += _pair("scale", partial(_line, 0.0, growth, 0.0), f"grow_{speed}", f"shrink_{speed}")
    return motions


def _orbits() -> list[Motion]:
    motions: list[Motion] = []
    for width, radius in (("narrow", 0.25), ("wide", 0.42)):
        for speed, rounds in (("slow", 0.8), ("fast", 1.5)):
            names = f"orbit_right_{width}_{speed}", f"orbit_left_{width}_{speed}"
            motions += _pair("orbit", partial(_orbit, radius, rounds), *names)
    return motions


def _oscillations() -> list[Motion]:
    """Return pairs of a slow and a fast oscillation on one line. Each is its own reversal, up to the phase."""
    return [
        Motion(f"oscillate_{heading:03d}_{speed}", "oscillate", partial(_oscillate, 0.35, periods), heading)
        for heading in (0, 45, 90, 135)
        for speed, periods in (("slow", 1.1), ("fast", 2.3))
    ]
