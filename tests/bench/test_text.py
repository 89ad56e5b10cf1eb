"""Captions of motions in the words of tiny-clip."""

from __future__ import annotations

import pytest

from dmgal.backbones import encode_class_names, load_text_encoder
from dmgal.bench.text import caption, direction
from dmgal.videos.moving_shapes.motions import all_motions


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        (0, "east"),
        (30, "east southeast"),
        (60, "south southeast"),
        (90, "south"),
        (240, "north northwest"),
        (315, "northeast"),
    ],
)
def test_directions_are_clockwise_from_east(degrees, words):
    assert direction(degrees) == words


def test_captions_of_novel_motions_are_known_and_different(caplog):
    moving = [motion.name for motion in all_motions() if motion.family not in ("rotate", "scale")]
    captions = [caption(name) for name in moving]
    assert caption("translate_030_slow") == "shape small pointing east southeast"
    assert len(set(captions)) == len(captions)
    encode_class_names(load_text_encoder("tiny-clip"), captions, ["{}"])
    assert not caplog.records
