"""Tests of motion world: classes, splits, reversals, independence of the appearance, and the data set on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dmgal.errors import DmgalError
from dmgal.recipes import generate as command
from dmgal.recipes.run.config import DataConfig
from dmgal.recipes.run.data import list_catalog
from dmgal.videos import VideoCatalog
from dmgal.videos.decoding.video import read_clip
from dmgal.videos.generated import generate
from dmgal.videos.motion_world import clips
from dmgal.videos.motion_world.clips import MotionWorld, draw_parameters, scene_layers
from dmgal.videos.motion_world.motions import all_motions, split_motions
from dmgal.videos.motion_world.stage.cameras import View, film
from dmgal.videos.motion_world.stage.curves import Tempo
from dmgal.videos.motion_world.stage.scenes import Cast
from dmgal.videos.motion_world.stage.textures import Texture

MOTIONS = all_motions()
BY_NAME = {motion.name: motion for motion in MOTIONS}
PAIRS = [(motion, BY_NAME[motion.reversal]) for motion in MOTIONS if motion.reversal and not motion.backward]
TIMES = np.linspace(0, 1, 9)
SMALL = {"clips_per_class": 1, "frames": 8, "pixels": 16}


def index_of(name: str) -> int:
    return next(i for i, motion in enumerate(MOTIONS) if motion.name == name)


@pytest.fixture
def few_classes(monkeypatch) -> list[str]:
    """Let motion world have six classes, two in each split."""
    names = ["walk", "walk_backward", "put_into", "take_out_of", "two_approach", "two_step_apart"]
    chosen = tuple(BY_NAME[name] for name in names)
    monkeypatch.setattr(clips, "all_motions", lambda: chosen)
    monkeypatch.setattr(clips, "split_motions", lambda seed: {"train": (0, 1), "val": (2, 3), "test": (4, 5)})
    return names


class TestClasses:
    def test_there_are_many_classes_of_every_family(self):
        assert len(MOTIONS) == len(BY_NAME) >= 150
        families = [motion.family for motion in MOTIONS]
        assert {family: families.count(family) >= 30 for family in families} == dict.fromkeys(
            ("solo", "duo", "table", "shape", "path"), True
        )

    def test_reversals_are_mutual(self):
        assert len(PAIRS) >= 75
        for forward, backward in PAIRS:
            assert backward.reversal == forward.name and backward.backward and forward.verb == backward.verb

    @pytest.mark.parametrize("seed", range(4))
    def test_splits_are_disjoint_and_share_no_verb(self, seed):
        split = split_motions(seed)
        assert sorted(index for part in split.values() for index in part) == list(range(len(MOTIONS)))
        verbs = [{MOTIONS[index].verb for index in part} for part in split.values()]
        assert sum(map(len, verbs)) == len(set.union(*verbs))
        names = {name: {MOTIONS[index].name for index in part} for name, part in split.items()}
        for part in names.values():
            assert all(BY_NAME[name].reversal is None or BY_NAME[name].reversal in part for name in part)
        assert len(split["train"]) >= 150 and len(split["val"]) >= 20 and len(split["test"]) >= 40
        for part in split.values():
            assert {MOTIONS[index].family for index in part} == {"solo", "duo", "table", "shape", "path"}

    def test_seed_changes_the_split(self):
        assert split_motions(0) == split_motions(0) != split_motions(1)

    def test_every_class_moves_something_in_the_picture(self):
        cast, _, tempo = draw_parameters(np.random.default_rng(1))
        for motion in MOTIONS:
            layers = scene_layers(motion, cast, TIMES, tempo)
            travel = max(np.ptp(layer.points, axis=0).max() for layer in layers)
            fading = max(np.ptp(layer.opacity) for layer in layers if layer.opacity is not None) if travel < 0.03 else 0
            assert all(np.isfinite(layer.points).all() for layer in layers), motion.name
            assert travel > 0.03 or fading > 0.5, motion.name
            assert any((np.abs(layer.points) < 1).all(axis=-1).any() for layer in layers), motion.name


class TestReversals:
    def test_reversal_shows_the_same_scene_from_its_end(self):
        """With equal draws, a reversal has the frames of its motion in reverse, so averages over time are equal."""
        drawn = [draw_parameters(np.random.default_rng(number)) for number in range(3)]
        for number, (forward, backward) in enumerate(PAIRS):
            cast, _, tempo = drawn[number % 3]
            layers = scene_layers(forward, cast, TIMES, tempo), scene_layers(backward, cast, TIMES[::-1], tempo)
            for first, second in zip(*layers, strict=True):
                assert np.allclose(first.points, second.points, rtol=0, atol=1e-9), forward.name

    def test_pictures_of_a_reversal_are_those_of_the_motion_in_reverse(self):
        for name in ("walk", "put_into", "two_hug", "fold", "path_arc_right_000"):
            forward, rng = BY_NAME[name], np.random.default_rng(3)
            cast, view, tempo = draw_parameters(rng)
            still = dataclasses.replace(
                view, movers=(), zoom=view.zoom * [1, 0], pan=view.pan * [1, 1, 0, 0], tilt=view.tilt * [1, 0],
                shake=view.shake * 0, light=view.light * [1, 1, 0, 1, 1], noise=0.0, quality=0,
                begin=0.0, end=1.0,
            )  # fmt: skip
            times = still.times(8)
            pictures = [
                film(scene_layers(motion, cast, still.seen(times).ravel(), tempo), still, times, 32, rng)
                for motion in (forward, BY_NAME[forward.reversal])
            ]
            np.testing.assert_allclose(pictures[0], pictures[1][::-1].astype(float), atol=1)
            assert np.abs(pictures[0].astype(float) - pictures[1]).mean() > 1

    def test_the_view_is_as_likely_as_its_reversal(self):
        views = [View.draw(np.random.default_rng(seed)) for seed in range(400)]
        for view in views[:50]:
            np.testing.assert_allclose(view.times(9).mean(axis=1) + view.times(9).mean(axis=1)[::-1], 1, atol=0.03)
        changes = np.array([[view.zoom[1], *view.pan[2:], view.tilt[1], view.begin - (1 - view.end)] for view in views])
        assert (np.abs(changes.mean(axis=0)) < 4 * changes.std(axis=0) / np.sqrt(len(views))).all()


class TestClips:
    def test_clips_depend_on_seed_class_and_number_only(self):
        world = MotionWorld(**SMALL)
        first = world.clip(5, 3)
        world.clip(7, 3)
        assert first.shape == (8, 3, 16, 16) and first.dtype == torch.uint8
        assert torch.equal(world.clip(5, 3), first)
        for other in (world.clip(5, 4), world.clip(6, 3), MotionWorld(seed=1, **SMALL).clip(5, 3)):
            assert not torch.equal(other, first)

    def test_path_keeps_left_and_right_and_other_motions_are_mirrored(self):
        tempo, cast = Tempo(), Cast.draw(np.random.default_rng(0))
        casts = [
            dataclasses.replace(cast, mirrored=mirrored, floor=False, place=np.zeros(2)) for mirrored in (False, True)
        ]
        for name, equal in (("path_translate_000_slow", True), ("push_along", False)):
            first, second = (scene_layers(BY_NAME[name], c, TIMES, tempo)[0].points[..., 0] for c in casts)
            assert np.allclose(first, second) is equal and np.allclose(np.abs(first), np.abs(second))

    @pytest.mark.parametrize("frames, pixels", [(64, 16), (8, 500)])
    def test_extreme_sizes_work(self, frames, pixels):
        clip = MotionWorld(frames=frames, pixels=pixels).clip(index_of("pour"), 0)
        assert clip.shape == (frames, 3, pixels, pixels) and clip.float().std() > 5

    @pytest.mark.parametrize(
        "values", [{"frames": 2}, {"frames": 65}, {"pixels": 15}, {"pixels": 17}, {"pixels": 514}, {"seed": -1}]
    )
    def test_values_out_of_range_raise(self, values):
        ((name, value),) = values.items()
        with pytest.raises(DmgalError, match="Cannot generate motion world") as refusal:
            MotionWorld(**values)
        assert f"{name}={value}" in str(refusal.value)

    @pytest.mark.slow
    def test_appearance_tells_nothing_about_the_class(self):
        """Fit a linear probe of the class to all drawn parameters but the motion. It must stay at chance."""
        classes, clips_each = range(0, len(MOTIONS), 20), 240
        world = MotionWorld()
        inputs, labels = [], []
        for label, motion in enumerate(classes):
            for clip in range(clips_each):
                inputs.append(parameters(draw_parameters(world.generator(MOTIONS[motion].name, clip))))
                labels.append(label)
        x, y = np.array(inputs), np.array(labels)
        x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
        train = np.random.default_rng(0).random(len(x)) < 0.5
        targets = np.eye(len(classes))[y] - 1 / len(classes)
        gram = x[train].T @ x[train] + 30 * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[train].T @ targets[train])
        accuracy = ((x[~train] @ weights).argmax(axis=1) == y[~train]).mean()
        assert x.shape[1] > 150 and abs(accuracy - 1 / len(classes)) < 0.03


def parameters(drawn: object) -> list[float]:
    """Return all drawn numbers of the casts, views and tempos. Lists of variable length count by their first entry."""
    if isinstance(drawn, Texture):
        return [float(drawn.pattern), *drawn.cut, drawn.turns[0], drawn.turns[1], *drawn.colors.ravel()]
    if dataclasses.is_dataclass(drawn):
        numbers: list[float] = []
        for field in dataclasses.fields(drawn):
            value = getattr(drawn, field.name)
            if field.name in ("props", "movers"):
                numbers += [float(len(value)), *(value[0][1] if value else np.zeros(3 if field.name == "props" else 6))]
            elif field.name in ("pattern", "floor_pattern"):
                numbers += [0.0] * 15 if value is None else parameters(value)
            else:
                numbers += parameters(value)
        return numbers
    if isinstance(drawn, tuple):
        return [number for part in drawn for number in parameters(part)]
    return [float(number) for number in np.ravel(drawn)]


class TestDataSet:
    def test_set_is_written_read_and_not_written_again(self, tmp_path, few_classes):
        root = tmp_path / "world"
        split_file = generate(MotionWorld(**SMALL), root, workers=1, progress=False)
        catalog = VideoCatalog.from_csv(split_file, root)
        assert sorted(catalog.class_names) == sorted(few_classes) and len(catalog.reversal_pairs) == 3
        video = next(root.rglob("put_into_00.mp4"))
        drawn = MotionWorld(**SMALL).clip(2, 0).float()
        assert (read_clip(video, range).float() - drawn).abs().mean() < 12
        before, lost = video.stat().st_mtime_ns, root / "train" / "walk" / "walk_00.mp4"
        lost.unlink()
        generate(MotionWorld(**SMALL), root, workers=1, progress=False)
        assert lost.exists() and video.stat().st_mtime_ns == before
        assert json.loads((root / "motion_world.json").read_text())["pixels"] == 16

    def test_folder_of_another_set_raises(self, tmp_path, few_classes):
        (tmp_path / "split.csv").write_text("")
        (tmp_path / "moving_shapes.json").write_text("{}")
        with pytest.raises(DmgalError, match=r"split\.csv, but no motion_world\.json"):
            generate(MotionWorld(**SMALL), tmp_path, 1, progress=False)

    def test_recipes_generate_it(self, tmp_path, few_classes, monkeypatch):
        root = tmp_path / "world"
        monkeypatch.setattr(MotionWorld, "__init__", lambda self, seed=0: set_small(self, seed))
        catalog = list_catalog(DataConfig(root=root, generate="motion_world"), progress=False)
        assert len(catalog) == 6 and catalog.class_splits[catalog.class_names.index("walk")] == "train"


class TestCommand:
    def test_sheets_and_films_are_written(self, tmp_path, few_classes, capsys):
        words = [
            "motion_world",
            "--sheet",
            str(tmp_path),
            "--frames",
            "8",
            "--pixels",
            "16",
            "--workers",
            "1",
            "--quiet",
        ]
        assert command.main(words) is None
        assert "1 sheets and 6 films" in capsys.readouterr().out
        assert (tmp_path / "sheet_01.png").exists()
        assert read_clip(Path(tmp_path / "films" / "walk.mp4"), range).shape == (8, 3, 16, 64)

    def test_data_set_is_written(self, tmp_path, few_classes, capsys):
        sizes = ["--clips-per-class", "1", "--frames", "8", "--pixels", "16", "--workers", "1", "--quiet"]
        command.main(["motion_world", "--out", str(tmp_path / "world"), *sizes])
        assert "6 classes of 1 clips" in capsys.readouterr().out and (tmp_path / "world" / "split.csv").exists()

    def test_look_of_another_set_raises(self):
        with pytest.raises(DmgalError, match="Only moving shapes have a look"):
            command.main(["motion_world", "--look", "dark"])

    def test_sheets_in_a_file_raise(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DmgalError, match="Cannot write contact sheets"):
            command.main(["motion_world", "--sheet", str(tmp_path / "file"), "--quiet"])


def set_small(world: MotionWorld, seed: int) -> None:
    for name, value in {"seed": seed, **SMALL}.items():
        object.__setattr__(world, name, value)
