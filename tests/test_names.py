"""Names of classes: which ones are alike, and how they read."""

from __future__ import annotations

import pytest

from dmgal.names import alike, comparable, readable


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("brush_hair", "brush hair"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("TVWatching", "tv watching"),
        ("air drumming", "air drumming"),
        ("playing McDonald", "playing mcdonald"),
        ("Pushing [something] off of [something]", "pushing something off of something"),
        ("Putting {something similar} on a table", "putting something similar on a table"),
        ("  shake__hands\t", "shake hands"),
        ("cafe\u0301_laden", "café laden"),
        ("ﬁre \U0001f525", "fire \U0001f525"),
        ("跳舞", "跳舞"),
        ("[_]", ""),
    ],
)
def test_names_are_read_as_words(name, words):
    assert readable(name) == words


@pytest.mark.parametrize("other", ["Brush_Hair", "brush  hair ", "brush__hair", "ｂrush hair", "brush\u00ad hair"])
def test_names_that_differ_only_in_form_are_alike(other):
    assert comparable(other) == comparable("brush hair")
    assert alike(["walk", "brush hair", "run", other]) == [[1, 3]]


def test_other_names_are_not_alike():
    assert alike(["brush hair", "brushhair", "brush hairs", "brüsh hair"]) == []
