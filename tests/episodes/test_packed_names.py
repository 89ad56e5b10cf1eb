"""Packed names are a sequence of strings like any other, whatever is in them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmgal.episodes.catalogs import packed_names
from dmgal.episodes.catalogs.packed_names import PackedNames

# what os.listdir can give: any text, and bytes that are no UTF-8 as surrogates
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(lambda b: b.decode(errors="surrogateescape"))
)


@given(NAMES)
def test_they_are_the_strings_that_went_in(names):
    packed = PackedNames(iter(names))
    assert packed == names and list(packed) == names and len(packed) == len(names)
    assert [packed[place] for place in range(len(names))] == names
    assert [packed[place] for place in range(-len(names), 0)] == names
    assert packed == PackedNames(names) and packed != [*names, "more"]


@given(NAMES, st.data())
def test_any_of_them_in_any_order(names, data):
    places = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    packed = PackedNames(names)
    assert packed.take(np.asarray(places, dtype=np.int64)) == [names[place] for place in places]
    cut = data.draw(st.slices(len(names)))
    assert packed[cut] == names[cut]


def test_more_names_than_are_handled_at_once(monkeypatch):
    monkeypatch.setattr(packed_names, "CHUNK", 3)
    names = [f"clip é {number}" if number % 4 else f"{number}" for number in range(20)]
    packed = PackedNames(names)
    assert list(packed) == names and packed.take(np.arange(19, -1, -1)) == names[::-1]


def test_outside_and_shown():
    packed = PackedNames(["a", "b", "c", "d"])
    for place in (4, -5):
        with pytest.raises(IndexError, match="of 4"):
            packed[place]
    assert repr(packed) == "PackedNames(4: a, b, ...)" and repr(PackedNames()) == "PackedNames(0: )"
    assert packed != "abcd" and PackedNames() == () and "c" in packed


def test_a_loader_process_gets_them():
    names = ["a/1.mp4", "b/\udce9.mp4"]
    assert copy.deepcopy(PackedNames(names)) == names  # takes the way of pickle
