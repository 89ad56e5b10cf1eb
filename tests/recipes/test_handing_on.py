"""A run folder can be handed on: nothing in it is pickled or tied to where it was made, and it works elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.cli import main
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.folder import Run

FLAGS = ["--train.steps", "2", "--train.learning-rate", "0.03", "--train.warmup-steps", "0", "--train.ema", "0.5"]
EVALUATION = ["--episodes", "40", "--quiet"]
RESULT = Path("results/test_2way_1shot_1query_40episodes_seed0.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_flags) -> Path:
    """Trained and evaluated."""
    out = tmp_path_factory.mktemp("made here") / "run"
    assert main(["train", "method/dmgal_adapter", *data_flags, *FLAGS, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), *EVALUATION]) == 0
    return out


@pytest.fixture
def moved(run, tmp_path, frame_folders) -> tuple[Path, list[str]]:
    """The run without the paths of the machine that made it, and the flags that say where the data is now."""
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "paths.yaml").unlink()
    shutil.rmtree(tmp_path / "run" / "results")
    shutil.copytree(frame_folders, tmp_path / "videos")
    videos = tmp_path / "videos"
    return tmp_path / "run", ["--data.root", str(videos), "--data.split-file", str(videos / "split.csv")]


def files(run: Path) -> list[Path]:
    found = [path for path in run.rglob("*") if path.is_file()]
    assert len(found) > 10
    return found


def test_only_paths_yaml_holds_paths_of_this_machine(run, frame_folders):
    texts = {path: path.read_bytes() for path in files(run) if path.name != "paths.yaml"}
    for folder in (frame_folders, run.parent, Path.cwd(), Path.home()):
        assert [path.name for path, text in texts.items() if f"{folder}/".encode() in text] == []
    assert str(frame_folders) in (run / "paths.yaml").read_text()  # which says so


def test_every_file_is_text_or_safetensors(run):
    """States are arrays without pickled objects."""
    kinds = set()
    for path in files(run):
        kinds.add(path.suffix)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                assert len(list(tensors.keys())) > 0
        elif path.suffix == ".npy":
            assert np.load(path, allow_pickle=False).size > 0
        else:
            assert "\0" not in path.read_text(encoding="utf-8"), path
    assert {".safetensors", ".json", ".jsonl", ".yaml"} <= kinds


def test_moved_run_evaluates_to_the_same_numbers(run, moved):
    folder, data = moved
    assert main(["evaluate", str(folder), *data, *EVALUATION]) == 0
    here, there = (json.loads((place / RESULT).read_text())["results"] for place in (run, folder))
    assert here == there


def test_peft_loads_adapter_of_moved_run(moved):
    folder, _ = moved
    recipe, recognizer = load_run(Run(folder))
    model = PeftModel.from_pretrained(load_backbone("tiny-clip"), str(folder / "adapter")).eval()
    videos = torch.randint(0, 256, (2, 4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trained = recognizer.encoder.encode(videos)
    loaded = FrameEncoder(model, recipe.backbone.pooling).eval().encode(videos)
    plain = FrameEncoder(load_backbone("tiny-clip"), recipe.backbone.pooling).eval().encode(videos)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    assert plain.keys() != trained.keys()  # without the adapter's task layer there are other states


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_unwritable_cache_raises_with_a_remedy(run, capsys):
    assert main(["evaluate", str(run), *EVALUATION, "--cache", "/proc/states"]) == 2
    assert "--states memory" in capsys.readouterr().err
