"""Commands on other data than those of a run or layer: what is read and written, novel classes, and results."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.config import DataConfig, DataOverrides, Recipe, TargetData
from dmgal.recipes.run.data import read_split, split_of
from dmgal.recipes.run.evaluation import evaluation_data
from dmgal.recipes.run.folder import Run
from dmgal.videos.generated import generate
from dmgal.videos.motion_world.clips import MotionWorld
from dmgal.videos.moving_shapes.clips import MovingShapes

SHORT = ["--episodes", "10", "--quiet"]
GENERATED = ["data/moving_shapes", "data/motion_world"]
Command = Callable[..., int]


def make_videos(root: Path, classes: list[str], gain: int = 1, videos: int = 3) -> Path:
    """Write ``root/class/video/frame.png``. The gain changes the pixels only."""
    for number, name in enumerate(classes):
        for video in range(videos):
            folder = root / name / f"v{video}"
            folder.mkdir(parents=True)
            for frame in range(4):
                color = 17 * number + 5 * gain + frame
                Image.fromarray(np.full((48, 48, 3), color, np.uint8)).save(folder / f"{frame}.png")
    return root


def write_split(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("split", "class_name", "video"), *rows])
    return path


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run) -> Path:
    """A run with a split file."""
    return save_run(tmp_path_factory.mktemp("runs") / "frozen", "frozen", "--train.steps", "0")


@pytest.fixture
def copied_run(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "runs" / "frozen", ignore=shutil.ignore_patterns("states", "results"))
    return tmp_path / "runs" / "frozen"


@pytest.fixture
def generated_run(copied_run, tmp_path) -> Path:
    """The run as if its data had been generated in a folder that no longer exists."""
    recipe = yaml.safe_load((copied_run / "recipe.yaml").read_text())
    recipe["data"] |= {"generate": "moving_shapes", "root": str(tmp_path / "lost"), "split_file": None}
    (copied_run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (copied_run / "paths.yaml").unlink()
    return copied_run


@pytest.fixture(params=["evaluate", "compare"])
def command(request) -> Command:
    def call(run: Path, *flags: str | Path) -> int:
        runs = [str(run)] * (2 if request.param == "compare" else 1)
        return main([request.param, *runs, *map(str, flags), *SHORT])

    return call


def test_cells_of_a_benchmark_share_all_classes_of_other_data(generated_run, tmp_path) -> None:
    run, names = Run(generated_run), ["translate_000_slow", "mine", "yours"]
    other = TargetData(root=make_videos(tmp_path / "other", names))
    _, unseen = evaluation_data(run, run.recipe(), other, "test", progress=False)
    _, shared = evaluation_data(run, run.recipe(), other, "test", progress=False, same_for_all=True)
    assert [*split_of(unseen).values()].count("test") == 2 and {*split_of(shared).values()} == {"test"}


class TestGeneration:
    @pytest.mark.parametrize("case", ["mistyped root", "file as root", "missing videos", "missing file", "both"])
    def test_override_of_missing_data_raises_and_writes_nothing(
        self, generated_run, tmp_path, command, frame_folders, case, capsys
    ):
        mine = write_split(
            tmp_path / "mine.csv", [("test", f"c{n}", f"no/{n}_{v}.mp4") for n in range(3) for v in (0, 1)]
        )
        flags: list[str | Path] = {
            "mistyped root": ["--data.root", tmp_path / "typo" / "mydata"],
            "file as root": ["--data.root", mine],
            "missing videos": ["--data.root", frame_folders, "--data.split-file", mine],
            "missing file": ["--data.root", frame_folders, "--data.split-file", tmp_path / "typo.csv"],
            "both": ["--data.root", tmp_path / "typo", "--data.split-file", mine],
        }[case]
        before = everything(tmp_path)
        assert command(generated_run, *flags) == 2
        message = capsys.readouterr().err
        assert "error: " in message and "Traceback" not in message
        assert everything(tmp_path) == before

    def test_override_is_evaluated_without_generation(self, generated_run, tmp_path, command, frame_folders, capsys):
        videos = make_videos(tmp_path / "mydata" / "test", ["my_a", "my_b", "my_c"]).parent
        before = everything(videos)
        assert command(generated_run, "--data.root", videos) == 0
        assert everything(videos) == before and not (tmp_path / "lost").exists()

    def test_split_file_of_a_moved_generated_set_is_used(self, generated_run, tmp_path, frame_folders):
        shutil.copytree(frame_folders, tmp_path / "moved")
        (tmp_path / "moved" / "moving_shapes.json").write_text("{}")
        before = everything(tmp_path / "moved")
        assert main(["evaluate", str(generated_run), "--data.root", str(tmp_path / "moved"), *SHORT]) == 0
        (result,) = (generated_run / "results").iterdir()
        assert "reversal_two_way" in json.loads(result.read_text())["results"]
        assert everything(tmp_path / "moved") == before

    @pytest.mark.parametrize("field", ["report", "store", "on_bad_video", "num_workers"])
    def test_other_overrides_leave_generation_on(self, field):
        value = {"report": Path("r"), "store": Path("s"), "on_bad_video": "skip", "num_workers": 1}[field]
        recipe = Recipe(data=DataConfig(generate="moving_shapes"))
        assert DataOverrides(**{field: value}).over(recipe).data.generate == "moving_shapes"

    @pytest.mark.parametrize(
        "words", [["enroll", "RUN", "clips"], ["recognize", "RUN", "gallery.safetensors", "clip.mp4"]]
    )
    @pytest.mark.parametrize("flag", ["--data.root", "--data.split-file"])
    def test_commands_on_clips_refuse_a_data_set(self, words, flag, capsys):
        with pytest.raises(SystemExit) as ended:
            main([*words, flag, "other"])
        assert ended.value.code == 2 and flag in capsys.readouterr().err

    @pytest.mark.parametrize("layer", GENERATED)
    @pytest.mark.parametrize("name", ["train", "store", "prepare"])
    def test_split_file_beside_generate_raises(self, layer, name, tmp_path, capsys):
        flags = ["--root", "--split-file"] if name == "prepare" else ["--data.root", "--data.split-file"]
        words = [name, layer, flags[0], str(tmp_path / "root"), flags[1], str(tmp_path / "mine.csv")]
        try:
            code = main([*words, "--out", str(tmp_path / "out")])
        except SystemExit as ended:
            code = ended.code
        assert code == 2 and "have their own split file" in capsys.readouterr().err
        assert everything(tmp_path) == []

    @pytest.mark.parametrize("layer", GENERATED)
    @pytest.mark.parametrize("name", ["train", "store", "prepare"])
    def test_root_with_other_files_raises_and_is_unchanged(self, layer, name, tmp_path, capsys):
        make_videos(tmp_path / "mine", ["my_a", "my_b"])
        before = everything(tmp_path)
        flag = "--root" if name == "prepare" else "--data.root"
        words = [name, layer, flag, str(tmp_path / "mine"), "--out", str(tmp_path / "out"), "--quiet"]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "my_a, my_b, but no" in message and "data.generate is no" in message
        assert everything(tmp_path) == before

    @pytest.mark.parametrize("kind", [MovingShapes, MotionWorld])
    @pytest.mark.parametrize(
        "name", ["clip.mp4", "class/clip.mp4", ".hidden", "train/a/b.mp4", "split.csv", "notes.txt", "other_set.json"]
    )
    def test_only_an_empty_folder_is_generated_into(self, kind, name, tmp_path):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        before = everything(tmp_path)
        with pytest.raises(DmgalError, match="but no"):
            generate(kind(clips_per_class=1, frames=8, pixels=16), tmp_path, 1, progress=False)
        assert everything(tmp_path) == before

    @pytest.mark.parametrize("name", [".moving_shapes.lock", ".123.moving_shapes.unfinished.json", ""])
    def test_leftovers_of_an_interruption_are_accepted(self, name, tmp_path, monkeypatch):
        if name:
            (tmp_path / name).touch()
        monkeypatch.setattr(MovingShapes, "split", lambda self: {"train": (0,), "test": (1,)})
        generate(MovingShapes(clips_per_class=1, frames=8, pixels=16), tmp_path, 1, progress=False)
        assert (tmp_path / "moving_shapes.json").exists() and len(list(tmp_path.rglob("*.mp4"))) == 2


class TestNovelClasses:
    @pytest.mark.parametrize("own", ["drawn split", "split file", "generated", "unknown"])
    @pytest.mark.parametrize("name", ["evaluate", "compare"])
    def test_all_unseen_classes_are_novel(self, name, own, tmp_path, save_run, request, capsys):
        if own == "generated":
            run, seen = request.getfixturevalue("generated_run"), []
        elif own == "drawn split":
            mine = make_videos(tmp_path / "own", [f"own{n}" for n in range(8)])
            run = save_run(tmp_path / "run", "frozen", "--data.root", str(mine), "--data.split-file", "None")
            seen = sorted(name for name, split in read_split(run / "split.csv").items() if split != "test")[:2]
        else:
            run, seen = request.getfixturevalue("copied_run"), []
        if own == "unknown":
            recipe = (run / "paths.yaml").read_text().replace("split.csv", "gone.csv")
            (run / "paths.yaml").write_text(recipe)
        new = make_videos(tmp_path / "new", [*(f"new{n}" for n in range(10)), *seen])
        flags = ["--data.root", str(new)]
        if own in ("split file", "unknown"):
            rows = [f"{n.name}/v{v} {i}\n" for i, n in enumerate(sorted(new.iterdir())) for v in range(3)]
            (tmp_path / "all.txt").write_text("".join(rows))
            flags += ["--data.split-file", str(tmp_path / "all.txt")]
        files = ["--out", str(tmp_path / "comparison.json")] if name == "compare" else []
        assert main([name, str(run), *flags, *files, *SHORT]) == 0
        message = capsys.readouterr().err
        assert f"10 of {10 + len(seen)} classes are novel" in message
        assert ("are unknown" in message) == (own == "unknown")
        (result,) = [tmp_path / "comparison.json"] if files else (run / "results").iterdir()
        assert json.loads(result.read_text())["protocol"]["data"]["classes"] == 10

    @pytest.mark.parametrize("split", ["test", "val"])
    def test_seen_classes_of_a_split_are_reported(self, copied_run, frame_folders, tmp_path, command, split, capsys):
        rows = [row.split(",")[:3] for row in (frame_folders / "split.csv").read_text().splitlines()[1:]]
        moved = {"train": split, "val": "train", "test": "train"}
        split_file = write_split(tmp_path / "all.csv", [(moved[one], name, video) for one, name, video in rows])
        assert command(copied_run, "--data.split-file", split_file, "--split", split) == 0
        assert f"6 of 6 {split} classes are not novel" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["train", "store"])
    def test_drawn_split_is_announced(self, name, tmp_path, data_flags, capsys):
        videos = make_videos(tmp_path / "videos", [f"c{n}" for n in range(10)])
        flags = ["--data.root", str(videos), "--data.split-file", "None", "--out", str(tmp_path / "out")]
        extra = ["--size", "48", "--workers", "1"] if name == "store" else ["--train.steps", "0"]
        assert main([name, "method/frozen", *data_flags, *flags, *extra]) == 0
        assert "drawn by seed 0, 6 train, 2 val, 2 test" in capsys.readouterr().err


class TestResults:
    def names(self, run: Path) -> set[str]:
        return {path.stem for path in (run / "results").iterdir()}

    @pytest.mark.parametrize("flags", [[], ["--split", "val"], ["--states", "float16"], ["--exact"]])
    def test_other_data_get_results_of_their_own(self, copied_run, frame_folders, tmp_path, flags):
        """The other data have the same names and other pixels."""
        other = tmp_path / "a b"
        for path in sorted(frame_folders.rglob("*.png")):
            target = other / path.relative_to(frame_folders)
            target.parent.mkdir(parents=True, exist_ok=True)
            image = np.asarray(Image.open(path))
            Image.fromarray(255 - image).save(target)
        command = ["evaluate", str(copied_run), *flags, *SHORT]
        assert main([*command, "--data.root", str(other)]) == 0
        (its,) = self.names(copied_run)
        assert main(command) == 0
        (own,) = self.names(copied_run) - {its}
        assert its.startswith(f"{own}_a-b_")
        protocols = [
            json.loads((copied_run / "results" / f"{name}.json").read_text())["protocol"] for name in (own, its)
        ]
        assert [protocol["data"]["root"] for protocol in protocols] == [frame_folders.name, "a b"]
        assert len({protocol["data"]["fingerprint"] for protocol in protocols}) == 2
        assert {(one["n_way"], one["k_shot"], one["n_query"]) for one in protocols} == {(2, 1, 1)}

    @pytest.mark.parametrize("place", ["same", "link", "copy", "split file"])
    def test_own_data_elsewhere_keep_the_name(self, copied_run, frame_folders, tmp_path, place):
        elsewhere = tmp_path / "elsewhere"
        if place == "link":
            elsewhere.symlink_to(frame_folders)
        elif place == "copy":
            shutil.copytree(frame_folders, elsewhere)
        else:
            elsewhere = frame_folders
        flags = ["--data.root", str(elsewhere)]
        if place == "split file":
            shutil.copy(frame_folders / "split.csv", tmp_path / "other.csv")
            flags = ["--data.split-file", str(tmp_path / "other.csv")]
        for words in ([], flags):
            assert main(["evaluate", str(copied_run), *words, *SHORT]) == 0
        assert self.names(copied_run) == {"test_2way_1shot_1query_10episodes_seed0"}

    def test_other_split_file_gets_a_result_of_its_own(self, copied_run, frame_folders, tmp_path):
        lines = (frame_folders / "split.csv").read_text().splitlines()
        (tmp_path / "less.csv").write_text("\n".join(lines[:-1]) + "\n")
        for words in ([], ["--data.split-file", str(tmp_path / "less.csv")]):
            assert main(["evaluate", str(copied_run), *words, *SHORT]) == 0
        assert len(self.names(copied_run)) == 2

    def test_comparison_holds_its_data(self, copied_run, frame_folders, tmp_path):
        out = tmp_path / "comparison.json"
        assert main(["compare", str(copied_run), "--out", str(out), "--ways", "3", *SHORT]) == 0
        protocol = json.loads(out.read_text())["protocol"]
        assert (protocol["n_way"], protocol["k_shot"], protocol["n_query"]) == (3, 1, 1)
        expected = {"root": frame_folders.name, "split_file": "split.csv", "classes": 4, "videos": 16}
        assert expected.items() <= protocol["data"].items()
