"""Says in words what a drawn still shows: shape, colors, texture, size, orientation and place.

Place is named on purpose and finely (seven words along each axis): a backbone whose pooled feature does not know where
things are cannot tell motions apart, whatever is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .drawing import COLORS, SHAPES, TEXTURES, Appearance, Poses

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
    """One thing a caption may say: its words, and the word's place in the sentence (``{}``)."""

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
    """All words; the end mark has the highest index, by which open_clip's text tower finds it."""
    words = dict.fromkeys(word for attribute in ATTRIBUTES for word in attribute.words)
    return [PAD, UNKNOWN, START, *FILLERS, *words, END]


def describe(looks: Appearance, poses: Poses) -> dict[str, Tensor]:
    """Index of the right word of every attribute, each ``(n,)``; poses are those of the first frame."""
    x, y, size, angle = (value[:, 0].contiguous() for value in (poses.x, poses.y, poses.size, poses.angle))
    return {
        "size": torch.bucketize(size, torch.tensor(SIZE_LIMITS)),
        "color": looks.color,
        "texture": looks.texture,
        "second_color": looks.second_color,
        "shape": looks.shape,
        "heading": torch.round(angle / (2 * math.pi / len(HEADINGS))).long() % len(HEADINGS),
        "row": torch.bucketize(y, torch.tensor(PLACE_LIMITS)),
        "column": torch.bucketize(x, torch.tensor(PLACE_LIMITS)),
    }


def captions(words: dict[str, Tensor], generator: Generator, keep: float = 1.0) -> Iterator[str]:
    """One sentence a still; each attribute is told with probability ``keep``, so that short prompts are known too."""
    count = len(words["shape"])
    told = torch.rand(count, len(ATTRIBUTES), generator=generator) < keep
    plain = words["texture"] == TEXTURES.index("plain")
    for i in range(count):
        facts = {
            attribute.name: attribute.words[int(words[attribute.name][i])]
            for attribute, is_told in zip(ATTRIBUTES, told[i].tolist(), strict=True)
            if is_told and not (attribute.name == "second_color" and plain[i])  # a plain shape shows one color
        }
        yield sentence(facts)


def sentence(facts: dict[str, str]) -> str:
    """The caption that tells some facts, e.g. ``{"color": "red"}`` gives "a red shape"."""
    told = {"shape": "shape", **facts}
    return " ".join(["a", *(a.phrase.format(told[a.name]) for a in ATTRIBUTES if a.name in told)])


def random_poses(count: int, generator: Generator) -> Poses:
    """Poses of stills ``(n, 1)``: everywhere in the picture, every size and heading alike."""
    uniform = torch.rand(4, count, 1, generator=generator)
    return Poses(
        x=uniform[0] * 1.8 - 0.9,
        y=uniform[1] * 1.8 - 0.9,
        size=0.14 * (0.50 / 0.14) ** uniform[2],
        angle=uniform[3] * 2 * math.pi,
    )
