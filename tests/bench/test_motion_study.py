"""Variants of the study of motion adapters: what their training sees, and what their videos leave out."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dmgal.bench.motion_study import CLIPS, VARIANTS, SimplerWorld, Variant, simplified, split_rows
from dmgal.recipes.run.config import parse
from dmgal.recipes.train import Train
from dmgal.videos.motion_world.clips import MotionWorld, draw_parameters
from dmgal.videos.motion_world.motions import all_motions

FAMILY = {motion.name: motion.family for motion in all_motions()}


@pytest.fixture(scope="module")
def split_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "split.csv"
    world = MotionWorld()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "class_name", "video"])
        for split, classes in world.split().items():
            names = [world.classes()[index].name for index in classes]
            writer.writerows([split, name, f"{name}_{clip}.mp4"] for name in names for clip in range(CLIPS + 3))
    return path


@pytest.mark.parametrize(
    "variant",
    [Variant(), Variant(classes=10), Variant(clips=2), Variant(clips=CLIPS + 2), Variant(families=("solo", "duo"))],
    ids=lambda variant: f"{variant.classes}-{variant.clips}-{'+'.join(variant.families)}",
)
def test_base_classes_are_those_of_the_variant_and_validation_never_changes(split_file, variant) -> None:
    header, *rows = split_rows(split_file, variant)
    assert header == ["split", "class_name", "video"] and {split for split, _, _ in rows} == {"train", "val"}
    base = Counter(name for split, name, _ in rows if split == "train")
    assert set(base.values()) == {variant.clips}
    assert not {FAMILY[name] for name in base} & set(variant.families)
    assert len(base) == variant.classes or variant.classes is None
    validation = [row for row in rows if row[0] == "val"]
    assert validation == [row for row in split_rows(split_file, Variant()) if row[0] == "val"]


def test_every_variant_is_a_valid_recipe_with_enough_clips() -> None:
    for group in VARIANTS.values():
        for variant in group.values():
            words = [f"method/{variant.method}", *variant.flags]
            episode = parse(words, prog="", description="", wrapper=Train)[0].recipe.episode
            assert variant.clips >= episode.k_shot + episode.n_query


@pytest.mark.parametrize("seed", range(5))
def test_a_factor_is_left_out_and_nothing_else_changes(seed) -> None:
    cast, view, _ = draw_parameters(np.random.default_rng(seed))
    times = np.linspace(0, 1, 5)
    _, still = simplified(cast, view, "camera")
    assert np.ptp(still.camera(times), axis=0).max() == 0 and still.movers is view.movers
    _, alone = simplified(cast, view, "movers")
    assert alone.movers == () and alone.props is view.props and (alone.camera(times) == view.camera(times)).all()
    plain, flat = simplified(cast, view, "textures")
    looks = (*plain.bodies, *plain.things, *plain.hands, *(look for look, _ in (*flat.props, *flat.movers)))
    assert all(look.pattern is None for look in looks) and plain.floor_pattern is None
    assert np.ptp(flat.background.image.reshape(-1, 3), axis=0).max() == 0


def test_a_share_of_the_videos_lacks_the_factor():
    world, whole = SimplerWorld(without="camera", share=0.5, frames=8, pixels=32), MotionWorld(frames=8, pixels=32)
    cameras = [
        [one.parameters(one.generator("walk", clip))[1].camera(np.linspace(0, 1, 5)) for one in (world, whole)]
        for clip in range(40)
    ]
    kept = [bool((ours == theirs).all()) for ours, theirs in cameras]
    still = [bool(np.ptp(ours, axis=0).max() == 0) for ours, _ in cameras]
    assert all(one or other for one, other in zip(kept, still, strict=True)) and 10 < sum(kept) < 34


@pytest.mark.parametrize("without", ["camera", "movers", "textures"])
def test_simpler_worlds_draw_the_same_motion(without) -> None:
    world, whole = SimplerWorld(without=without, frames=8, pixels=32), MotionWorld(frames=8, pixels=32)
    pairs = [(world.clip(0, clip), whole.clip(0, clip)) for clip in range(7)]  # a factor is in some clips
    assert pairs[0][0].shape == (8, 3, 32, 32) and any((one != other).any() for one, other in pairs)
    assert world.description() != whole.description()
