"""Reproduction of published numbers: resume, seeds that fail, the record, and the table beside published accuracies."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from dmgal.bench import reproduce, reproduction
from dmgal.bench.matrix import runner
from dmgal.bench.matrix.cell import Job, write_result
from dmgal.bench.matrix.runner import Runner
from dmgal.bench.reproduce import Reproduce
from dmgal.cli import main
from dmgal.recipes import prepare
from dmgal.recipes.run import preparation
from dmgal.recipes.run.layers import bundled_layers
from dmgal.videos.check_log import write_report

WORDS = ["--backbone", "tiny-clip", "--methods", "frozen", "smga", "--ways", "2", "--shots", "1", "--quiet"]
META = {
    "date": "2026-11-30T00:00:00",
    "git_revision": "abc1234",
    "versions": {"dmgal": "1"},
    "hardware": {"processor": "one", "threads": 1, "gpu": None},
}
PERCENTS = {0: 60.0, 1: 62.0, 2: 64.0}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos with two classes of two videos for each split."""
    root = tmp_path_factory.mktemp("data") / "mine"
    for number, split in enumerate(("train", "val", "test")):
        for video in ("a/1", "a/2", "b/1", "b/2"):
            folder = root / split / f"{split}_{video}"
            folder.mkdir(parents=True)
            for frame in range(2):
                color = (40 * number, 20 * frame, 60 * int(video[2]))
                Image.new("RGB", (48, 48), color).save(folder / f"{frame}.png")
    return root


class Trainings:
    """Processes that leave a result, or fail if their seed is to fail."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.started: list[tuple[str, int]] = []
        self.failing = failing

    def __call__(self, job_file: Path, log: Path, variables) -> subprocess.Popen:
        job = Job.read(job_file)
        cell = job.find()
        self.started.append((cell.method, cell.seed))
        log.write_text("no luck")
        if cell.seed not in self.failing:
            accuracy = {"percent": PERCENTS[cell.seed], "half_width": 0.5}
            info = {"status": "done", "steps": cell.recipe.train.steps, "results": {"1": {"accuracy": accuracy}}}
            info |= {"memory_mb": {"max": 500.0 + cell.seed}}
            write_result(job, info, "", META, 100.0)
        return subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({int(cell.seed in self.failing)})"])


def all_sound(listed, out: Path, *_, **__):
    """Stand in for the check, which decodes in other processes."""
    write_report(out / preparation.REPORT, {})
    return {}, []


def run(words: list[str], trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(runner, "environment", lambda: META)
    monkeypatch.setattr(preparation, "check", all_sound)
    monkeypatch.setattr(reproduce, "Runner", partial(Runner, start=trainings))
    return main(["reproduce", *words])


def test_a_failed_seed_is_stated_and_finished_ones_never_train_again(videos, tmp_path, monkeypatch, capsys) -> None:
    words = [str(videos), *WORDS, "--out", str(tmp_path)]
    trainings = Trainings(failing=(1,))
    assert run(words, trainings, monkeypatch) == 0
    assert trainings.started == [("frozen", 0), ("smga", 0), ("smga", 1), ("smga", 2)]
    assert "smga, seed 1: failed" in capsys.readouterr().out
    record = json.loads((tmp_path / "reproduction.json").read_text())
    assert record["videos"] == {"found": 12, "missing": 0, "bad": 0} and record["commands"][0].startswith("dmgal repr")
    frozen, smga = record["rows"]
    assert frozen["by_seed"] == {"0": 60.0} and frozen["interval_over_seeds"] is None
    assert smga["percent"] == 62 and smga["by_seed"] == {"0": 60.0, "2": 64.0} and smga["peak_mb"] == 502
    assert smga["runs"] == [f"runs/tiny-clip--smga--1shot--seed{seed}" for seed in (0, 2)] and smga["seconds"] == 200
    assert "62.0 (36.6 to 87.4), 2 of 3 seeds" in (tmp_path / "reproduction.md").read_text()  # Student's t of two: 12.7
    monkeypatch.setattr(prepare, "run", lambda *_, **__: pytest.fail("the videos were checked before"))
    again = Trainings()
    assert run([*words, "--retry"], again, monkeypatch) == 0
    assert again.started == [("smga", 1)]
    smga = json.loads((tmp_path / "reproduction.json").read_text())["rows"][1]
    assert smga["interval_over_seeds"] == [57.03, 66.97]  # 62 +- 4.303 * 2 / sqrt(3)


def test_plan_states_time_memory_and_disk_and_writes_nothing(videos, tmp_path, capsys) -> None:
    (tmp_path / "short.yaml").write_text("data: {num_frames: 2}")
    words = [*WORDS, "--seeds", "0", "--layers", str(tmp_path / "short.yaml"), "--out", str(tmp_path / "out")]
    assert main(["reproduce", str(videos), *words, "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "2 cells to run, 0 finished" in printed and "MB on disk" in printed
    assert "the check of 12 videos takes about" in printed and not (tmp_path / "out").exists()


def test_an_unknown_data_set_is_named(tmp_path, capsys) -> None:
    assert main(["reproduce", "ssv2_smal", "--out", str(tmp_path / "out")]) == 2
    assert "ssv2_small, ssv2_full, kinetics100, hmdb51, ucf101, or a folder" in capsys.readouterr().err


def test_standard_data_sets_have_default_folders_and_methods() -> None:
    options = Reproduce("ssv2_small")
    assert (options.videos, options.folder) == (Path("data/ssv2_small"), Path("reproduced/ssv2_small"))
    experiment = reproduce.experiment_of(options, Path("data/ssv2_small"))
    assert experiment.methods == reproduction.METHODS[reproduction.CLIP] and experiment.seeds == (0, 1, 2)


def test_published_accuracies_are_of_known_methods_and_data() -> None:
    for method, published in reproduction.read_published().items():
        assert f"method/{method}" in bundled_layers() and published.source
        assert published.percent.keys() <= reproduction.TITLES.keys()
        for by_shots in published.percent.values():
            assert by_shots.keys() <= set(reproduction.SHOTS)
            assert all(20 < percent < 100 for percent in by_shots.values())


def test_data_sets_without_a_run_are_rows_with_published_numbers_only() -> None:
    lines = reproduction.reproduction_table([], ["ssv2_full"]).splitlines()[2:]
    assert "| SSv2-Full | trx | ResNet-50 |  |  |  | 64.6 |  |  |  |" in lines
    assert any(line.startswith("| SSv2-Full | dmgal_adapter |") for line in lines)


def test_a_published_number_of_another_backbone_names_it() -> None:
    row = {"method": "trx", "backbone": "tiny-clip", "shots": "5", "percent": 30.0, "interval_over_seeds": None}
    row |= {"by_seed": {"0": 30.0}, "statuses": ["done"], "peak_mb": 9.0, "seconds": 60.0}
    table = reproduction.reproduction_table([{"data": "ucf101", "rows": [row]}])
    assert "| UCF101 | trx | tiny-clip |  | 30.0 |  | 96.1 (ResNet-50) | 0 | 9 | 60 s |" in table
