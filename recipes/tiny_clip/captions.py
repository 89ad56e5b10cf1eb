"""Captions of drawn stills: shape, colors, texture, size, orientation and position.

The position is named finely on purpose, with seven words along each axis. If a backbone's pooled feature does not
encode positions, no adapter can distinguish motions with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dmgal.videos.moving_shapes.drawing import COLORS, SHAPES, TEXTURES, Appearance, Poses

SIZES = ("tiny", "small", "medium", "large")
SIZE_LIMITS = (0.20, 0.27, 0.36)
HEADINGS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
COLUMNS = ("leftmost", "left", "midleft", "center", "midright", "right", "rightmost")
ROWS = ("topmost", "top", "midtop", "middle", "midbottom", "bottom", "bottommost")
PLACE_LIMITS = (-0.65, -0.40, -0.15, 0.15, 0.40, 0.65)
FILLERS = ("a", "with", "pointing", "at", "shape")
START, END, PAD, UNKNOWN = "<start>", "<end>", "<pad>", "<unknown>"


@dataclass(frozen=True)
class Attribute:
    """A property that a caption may name: its words, and a phrase in which a word replaces ``{}``."""

    name: str
    words: tuple[str, ...]
    phrase: str


ATTRIBUTES = (
    Attribute("size", SIZES, "{}"),
    Attribute("color", tuple(COLORS), "{}"),
    Attribute("texture", TEXTURES, "{}"),
    Attribute("second_color", tuple(COLORS), "with {}"),
    Attribute("shape", SHAPES, "{}"),
    Attribute("heading", HEADINGS, "pointing {}"),
    Attribute("row", ROWS, "at {}"),
    Attribute("column", COLUMNS, "{}"),
)


def vocabulary() -> list[str]:
    """Return all words. The end mark has the highest index, by which open_clip's text tower finds it."""
    words = dict.fromkeys(word for attribute in ATTRIBUTES for word in attribute.words)
    return [PAD, UNKNOWN, START, *FILLERS, *words, END]


def describe(appearance: Appearance, poses: Poses) -> dict[str, Tensor]:
    """Return the index of the right word of every attribute, each ``(n,)``, for the poses of the first frame."""
    x, y, size, angle = (value[:, 0].contiguous() for value in (poses.x, poses.y, poses.size, poses.angle))
    return {
        "size": torch.bucketize(size, torch.tensor(SIZE_LIMITS)),
        "color": appearance.color,
        "texture": appearance.texture,
        "second_color": appearance.second_color,
        "shape": appearance.shape,
        "heading": torch.round(angle / (2 * math.pi / len(HEADINGS))).long() % len(HEADINGS),
        "row": torch.bucketize(y, torch.tensor(PLACE_LIMITS)),
        "column": torch.bucketize(x, torch.tensor(PLACE_LIMITS)),
    }


def captions(words: dict[str, Tensor], generator: Generator, keep: float = 1.0) -> Iterator[str]:
    """Yield one sentence per still. Each attribute is named with probability ``keep``, to include short captions."""
    count = len(words["shape"])
    is_named = torch.rand(count, len(ATTRIBUTES), generator=generator) < keep
    is_plain = words["texture"] == TEXTURES.index("plain")
    for i in range(count):
        facts = {
            attribute.name: attribute.words[int(words[attribute.name][i])]
            for attribute, named in zip(ATTRIBUTES, is_named[i].tolist(), strict=True)
            if named and not (attribute.name == "second_color" and is_plain[i])  # a plain shape has one color
        }
        yield sentence(facts)


def sentence(facts: dict[str, str]) -> str:
    """Return the caption for some facts, e.g. "a red shape" for ``{"color": "red"}``."""
    words = {"shape": "shape", **facts}
    return " ".join(["a", *(a.phrase.format(words[a.name]) for a in ATTRIBUTES if a.name in words)])


def random_poses(count: int, generator: Generator) -> Poses:
    """Draw poses of stills ``(n, 1)``: uniform in position, log size and heading."""
    uniform = torch.rand(4, count, 1, generator=generator)
    return Poses(
        x=uniform[0] * 1.8 - 0.9,
        y=uniform[1] * 1.8 - 0.9,
        size=0.14 * (0.50 / 0.14) ** uniform[2],
        angle=uniform[3] * 2 * math.pi,
    )
