"""A cell of ``dmgal bench`` on a small data set: trained, tested and measured as the commands do it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmgal.bench.matrix import cell as matrix_cell
from dmgal.bench.matrix.cell import Job
from dmgal.bench.matrix.experiment import experiment_from
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes import train


@pytest.fixture(scope="module")
def tree(frame_folders: Path) -> dict:
    data = {"root": str(frame_folders), "split_file": str(frame_folders / "split.csv")}
    return {
        "methods": ["smga"],
        "recipe": {
            "data": {**data, "num_workers": 0, "num_frames": 4},
            "episode": {"n_way": 2, "n_query": 1},
            "train": {"steps": 3, "validate_every": 2, "validation_episodes": 8},
        },
        "test_shots": [1, 2],
        "episodes": 40,
    }


def run(tree: dict, folder: Path) -> dict:
    """Run the only cell of an experiment in this process and return its result."""
    experiment = experiment_from(tree)
    (cell,) = experiment.cells()
    Job(experiment, cell.name, folder / "run", folder / "result.json").write(folder / "job.json")
    assert matrix_cell.main([str(folder / "job.json")]) == 0
    return json.loads((folder / "result.json").read_text())


def test_a_cell_is_trained_tested_and_measured(tree, frame_folders, tmp_path, capsys) -> None:
    other = {"other": {"root": str(frame_folders), "split_file": str(frame_folders / "split.csv")}}
    result = run({**tree, "tests": other}, tmp_path)
    assert set(result) == {"run_info", "train_info", "meta_info"}
    info = result["train_info"]
    assert info["status"] == "done" and info["steps"] == 3 and [v["step"] for v in info["validation"]] == [2, 3]
    assert info["parameters"]["trained"] == info["parameters"]["added_to_backbone"] + 1  # the scale of the head
    assert info["file_size"] > 4 * info["parameters"]["trained"] and info["gigaflops"]["task"] > 0
    assert 0 < info["memory_mb"]["p99"] <= info["memory_mb"]["max"]
    assert info["step_seconds"]["count"] == 2 and info["videos_per_second"]["median"] > 0
    assert set(info["results"]["2"]) == {"accuracy", "reversal_two_way", "reversal_four_way", "probe"}
    assert info["tests"]["other"]["1"]["accuracy"] == info["results"]["1"]["accuracy"]
    assert info["seen_classes"] == {"other": []}
    assert result["run_info"]["recipe"]["data"]["root"] == frame_folders.name  # no path of this machine
    assert str(tmp_path) not in json.dumps(result)
    for shots, one in info["results"].items():  # the numbers of dmgal evaluate
        arguments = ["--shots", shots, "--episodes", "40", "--quiet"]
        assert main(["evaluate", str(tmp_path / "run"), *arguments]) == 0
        (path,) = (tmp_path / "run" / "results").glob(f"*_{shots}shot_*.json")
        expected = json.loads(path.read_text())["results"]["accuracy"]
        assert {name: one["accuracy"][name] for name in expected} == expected
        correct = [int(digit) for digit in one["accuracy"]["correct"]]
        assert sum(correct) / (2 * 40) == pytest.approx(expected["percent"] / 100, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DmgalError("Training diverged.", received="the loss is nan"), "diverged"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (ValueError("a bug"), "failed"),
    ],
)
def test_an_error_leaves_a_status(tree, tmp_path, monkeypatch, error, status) -> None:
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(train, "run", fail)
    result = run(tree, tmp_path)
    assert result["train_info"] == {"status": status} and str(error) in result["run_info"]["error_msg"]
