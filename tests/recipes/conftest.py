"""A small data set on disk: real motions as folders of frames, a few classes in every split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import parse
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.folder import Run
from dmgal.recipes.run.weights import best_state, save_best
from dmgal.recipes.train import Train
from dmgal.videos.moving_shapes.clips import MovingShapes
from dmgal.videos.moving_shapes.drawing import COLORS
from dmgal.videos.moving_shapes.motions import all_motions

CLIPS = 4
CLASSES = {"train": range(0, 12, 2), "val": range(12, 18, 2), "test": range(18, 22)}  # two reversal pairs in the test


@pytest.fixture(scope="session")
def frame_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``root/split/class/clip/frame.png``, 8 frames of 48 pixels; the split file of the test split names reversals."""
    root = tmp_path_factory.mktemp("frames")
    motions, shapes = all_motions(), MovingShapes(seed=100, clips_per_class=CLIPS, frames=8, pixels=48)
    rows = ["split,class_name,video,reversal"]
    for split, numbers in CLASSES.items():
        for number in numbers:
            motion = motions[number]
            for clip in range(CLIPS):
                folder = root / split / motion.name / str(clip)
                folder.mkdir(parents=True)
                for place, frame in enumerate(shapes.clip(number, clip)):
                    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{place}.png")
                reversal = motion.reversal or "" if split == "test" else ""
                rows.append(f"{split},{motion.name},{split}/{motion.name}/{clip},{reversal}")
    (root / "split.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def data_flags(frame_folders: Path) -> list[str]:
    """Flags of a recipe on this data: two-way tasks, nothing long."""
    return [
        *("--data.root", str(frame_folders), "--data.split-file", str(frame_folders / "split.csv")),
        *("--data.num-workers", "0", "--data.keep-in-memory", "--data.num-frames", "4"),
        *("--ways", "2", "--queries", "1"),
        *("--train.validation-episodes", "8", "--quiet"),
    ]


@pytest.fixture(scope="session")
def named_flags(frame_folders: Path, data_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same flags with names that tiny-clip knows: the classes are called ``red disc``, ``red bar``, ..."""
    rows = list(csv.DictReader((frame_folders / "split.csv").read_text().splitlines()))
    names = sorted({row["class_name"] for row in rows})
    words = dict(zip(names, (f"{color} {shape}" for color in COLORS for shape in ("disc", "bar")), strict=False))
    lines = [f"{row['split']},{words[row['class_name']]},{row['video']}" for row in rows]
    path = tmp_path_factory.mktemp("names") / "split.csv"
    path.write_text("\n".join(["split,class_name,video", *lines]) + "\n")
    return [*data_flags, "--data.split-file", str(path)]


@pytest.fixture(scope="session")
def save_run(data_flags: list[str]) -> Callable[..., Path]:
    """Write a run folder as training leaves it, with random steps instead of training. Return its path."""

    def save(out: Path, method: str, *flags: str) -> Path:
        words = [f"method/{method}", *data_flags, *flags]
        recipe = parse(words, prog="test", description="", wrapper=Train)[0].recipe
        run, generator = Run(out), torch.Generator().manual_seed(recipe.train.seed)
        run.start(recipe, resume=False, catalog=build_catalog(recipe.data))
        recognizer = build_recognizer(recipe)
        for parameter in recognizer.parameters():
            if parameter.requires_grad and recipe.train.steps:
                parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
        save_best(recognizer, best_state(recognizer), run)
        return out

    return save
