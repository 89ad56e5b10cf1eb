"""Absolute paths stand apart from a run's recipe, and come back."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmgal.recipes.run.folder import environment
from dmgal.recipes.run.layers import put_back, set_apart

VALUES = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.text("ab", min_size=1).map("/disk/{}".format), st.booleans()
)
TREES = st.recursive(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=3),
    lambda trees: st.dictionaries(st.text("abc", min_size=1, max_size=3), st.one_of(VALUES, trees), max_size=3),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(TREES)
def test_set_apart_paths_round_trip(tree):
    shared, paths = set_apart(tree)
    assert put_back(shared, paths) == tree
    assert "/disk" not in str(shared)


def test_absolute_path_is_shortened_to_its_last_part():
    tree = {"data": {"root": "/disk/ssv2", "split_file": "splits/a.csv"}, "backbone": {"name": "/weights/clip"}}
    shared, paths = set_apart(tree)
    assert shared == {"data": {"root": "ssv2", "split_file": "splits/a.csv"}, "backbone": {"name": "clip"}}
    assert paths == {"data.root": "/disk/ssv2", "backbone.name": "/weights/clip"}


@pytest.mark.parametrize(
    ("word", "saved"),
    [
        ("/home/ann/clips", "clips"),
        ("--out=/home/ann/run", "--out=run"),
        (r"C:\Users\Ann\clips", "clips"),
        (r"--out=D:\run", "--out=run"),
        ("runs/mine", "runs/mine"),
        ("([^/]+)#", "([^/]+)#"),
    ],
)
def test_environment_names_no_folders_of_people(word, saved, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dmgal", word])
    assert environment()["command"] == ["dmgal", saved]
