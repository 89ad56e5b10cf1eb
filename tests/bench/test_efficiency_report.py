"""Report of a matrix: rows, paired differences, Pareto front, and files that are written or found stale."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import pytest

from dmgal.bench.matrix import report_folder
from dmgal.bench.matrix.figures import (
    FIGURES,
    Point,
    learning_curve,
    operations_by_part,
    pareto_front,
    seconds_by_part,
)
from dmgal.bench.matrix.report import (
    ablation_table,
    accuracy_table,
    cost_table,
    labels,
    load,
    other_data_table,
    paired,
    rows_of,
)
from dmgal.cli import main
from dmgal.errors import DmgalError

META = {
    "versions": {"dmgal": "1", "torch": "2"},
    "git_revision": "abc1234",
    "hardware": {"processor": "one", "cores": 2, "threads": 1, "gpu": None},
}


def result(method: str, correct: str | None, seed: int = 0, status: str = "done") -> dict:
    """Return a result with the number of correct answers of each episode, of five queries."""
    cell = {"backbone": "tiny-clip", "method": method, "variant": "", "shots": 1, "seed": seed}
    info: dict = {"status": status}
    if correct is not None:
        percent = 100 * sum(map(int, correct)) / (5 * len(correct))
        accuracy = {"percent": percent, "half_width": 2.0, "queries": 5, "correct": correct, "episodes_hash": "e"}
        info |= {
            "steps": 4,
            "results": {"1": {"accuracy": accuracy}},
            "parameters": {"trained": 1000 * len(method)},
            "memory_mb": {"max": 100.0, "p99": 99.0},
            "step_seconds": {"median": 0.5},
            "file_size": 2048,
        }
    run_info = {"cell": cell, "created_at": "2026-11-29T00:00:00", "experiment_name": "e", "test": {"episodes": 4}}
    recipe = {"train": {"tasks_per_step": 1}, "episode": {"n_way": 2, "k_shot": 1, "n_query": 2}}
    run_info |= {"error_msg": "", "total_time": 9.0, "recipe": recipe}
    return {"run_info": run_info, "train_info": info, "meta_info": copy.deepcopy(META)}


RESULTS = [
    result("frozen", "1234"),
    result("lora", "2345"),
    result("lora", "4345", seed=1),
    result("aim", None, status="out of memory"),
    result("smga", "3333"),
    result("smga", None, seed=1, status="diverged"),
]


def test_rows_have_means_over_seeds_and_paired_differences() -> None:
    frozen, lora, aim, smga = rows_of(RESULTS)
    assert frozen.accuracy(("results", "1", "accuracy")) == "50.0 ± 2.0"
    assert lora.accuracy(("results", "1", "accuracy")) == "75.0 (70.0 to 80.0)"
    change = paired(lora, frozen, "results", "1", "accuracy")
    assert change is not None and change.mean == pytest.approx(25)  # 2, 1, 1, 1 of 5 queries: the mean of both seeds
    assert paired(frozen, frozen, "results", "1", "accuracy") is None
    table = accuracy_table([frozen, lora, aim, smga])
    assert "| aim |  |  | out of memory |" in table and "reversal" not in table
    assert "| smga | 60.0 ± 2.0" in table  # one of two seeds; the page names the other
    assert "| frozen | 6,000 | 100 | 99 | 0.500 | 2 |" in cost_table([frozen, aim])


def test_ablations_are_paired_with_the_full_method_of_the_same_seeds() -> None:
    rows = [result("dmgal", "3333", seed) for seed in (0, 1)]
    rows += [result("dmgal", correct, seed) for seed, correct in ((0, "2323"), (1, "3233"))]
    for one in rows[2:]:
        one["run_info"]["cell"]["variant"] = "without attention"
    failed = result("dmgal", None, status="failed")
    failed["run_info"]["cell"]["variant"] = "2 frames"
    table = ablation_table(rows_of([result("frozen", "1234"), *rows, failed])).splitlines()
    assert table[0].startswith("| method | 1 shot % | to the full method, 1 shot, points | trained | status |")
    assert table[2].startswith("| dmgal, without attention | 52.5 (50.0 to 55.0) | -7.5 ± 8.0 (-10.0 to -5.0) |")
    assert table[3] == "| dmgal, 2 frames |  |  |  | failed |" and len(table) == 4
    assert ablation_table(rows_of([result("frozen", "1234")])) == ""


def test_other_data_are_columns_with_paired_differences_and_the_probe() -> None:
    rows = [result("frozen", "1234"), result("lora", "2345")]
    for one, other in zip(rows, (result("frozen", "1111"), result("lora", "2121")), strict=True):
        accuracy = other["train_info"]["results"]["1"]["accuracy"] | {"episodes_hash": "of clips"}
        one["train_info"]["tests"] = {"clips": {"1": {"accuracy": accuracy, "probe": {"percent": 31.0}}}}
    header, _, frozen, lora = accuracy_table(rows_of(rows)).splitlines()
    assert header.endswith("| clips, 1 shot % | clips, to the first, 1 shot | clips, probe, 1 shot % |")
    assert frozen.endswith("| 20.0 ± 2.0 |  | 31.0 |") and lora.endswith("| 30.0 ± 2.0 | +10.0 ± 18.4 | 31.0 |")


def test_data_sets_with_the_same_episodes_are_paired_with_the_first() -> None:
    rows = [result("frozen", "1234"), result("lora", "2345")]
    for one, correct in zip(rows, ("1111", "2121"), strict=True):
        tests = {}
        for name, episodes, answers in (("dark", "a", "1111"), ("bright", "a", correct), ("clips", "b", correct)):
            accuracy = result("x", answers)["train_info"]["results"]["1"]["accuracy"] | {"episodes_hash": episodes}
            tests[name] = {"1": {"accuracy": accuracy}}
        one["train_info"]["tests"] = tests
    header, _, *lines = other_data_table(rows_of(rows)).splitlines()
    assert header == "| tested on | method | 1 shot % | to frozen | to dark |"
    assert lines[2].startswith("| bright | frozen |") and lines[3].startswith("| bright | lora |")
    assert lines[3].endswith("| +10.0 ± 18.4 | +10.0 ± 18.4 |") and lines[5].endswith("| +10.0 ± 18.4 |  |")


def test_a_table_without_any_result_has_its_statuses() -> None:
    rows = rows_of([result("lora", None, status="failed"), result("aim", None, status="diverged")])
    assert accuracy_table(rows) == "| method | status |\n| --- | --- |\n| lora | failed |\n| aim | diverged |\n"


def test_rows_of_other_episodes_are_not_paired() -> None:
    ours, theirs = result("lora", "2345"), result("frozen", "1234")
    ours["train_info"]["results"]["1"]["accuracy"]["episodes_hash"] = "f"
    assert paired(*rows_of([ours, theirs]), "results", "1", "accuracy") is None


def test_pareto_front() -> None:
    points = [Point("a", 1, 50), Point("b", 2, 40), Point("c", 2, 60), Point("d", 3, 60), Point("e", 9, 70)]
    assert [point.name for point in pareto_front(points)] == ["a", "c", "e"]
    assert pareto_front([]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    for one in RESULTS:
        cell = one["run_info"]["cell"]
        (tmp_path / "results" / f"{cell['method']}{cell['seed']}.json").write_text(json.dumps(one))
    return tmp_path


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_deterministic_and_dark_or_light(name: str) -> None:
    pytest.importorskip("matplotlib")
    light, again, dark = (FIGURES[name](rows_of(RESULTS), "svg", is_dark) for is_dark in (False, False, True))
    assert light == again != dark and light.startswith(b"<?xml")


def test_learning_curve_has_the_mean_accuracy_by_episodes_that_all_seeds_have_seen() -> None:
    rows = [result("lora", "2345", seed) for seed in (0, 1)]
    for one, accuracies in zip(rows, ((40.0, 50.0, 60.0), (50.0, 70.0)), strict=True):
        one["run_info"]["recipe"]["train"]["tasks_per_step"] = 4
        entries = enumerate(accuracies, start=1)
        one["train_info"]["validation"] = [{"step": 10 * n, "validation_accuracy": a} for n, a in entries]
    assert learning_curve(rows_of(rows)[0]) == {40: 45.0, 80: 60.0}


def test_rows_of_several_backbones_have_different_labels() -> None:
    rows = [result("lora", "2345"), result("lora", "2345")]
    rows[1]["run_info"]["cell"]["backbone"] = "resnet"
    assert list(labels(rows_of(rows)).values()) == ["tiny-clip, lora", "resnet, lora"]
    assert list(labels(rows_of(rows[:1])).values()) == ["lora"]


def test_costs_by_part_add_up() -> None:
    one = result("lora", "2345")
    one["run_info"]["total_time"] = 100.0
    one["train_info"] |= {"steps": 20, "seconds": {"training": 30.0, "evaluation": 50.0}}
    one["train_info"]["gigaflops"] = {"video": 0.5, "task": 9.0}
    (row,) = rows_of([one])
    assert list(seconds_by_part(row).values()) == [10.0, 20.0, 50.0, 20.0]  # steps of half a second
    assert operations_by_part(row) == {"encoder, forward": 3.0, "head and backward": 6.0}  # 2 ways, 1 shot, 2 queries


def test_report_is_written_and_found_stale(folder: Path, monkeypatch, capsys) -> None:
    names = ("figure", "learning", "breakdown")
    draws = {name: lambda rows, form, dark, name=name: f"{name} {form} {dark}".encode() for name in names}
    monkeypatch.setattr(report_folder, "FIGURES", draws)
    words = ["bench", "report", str(folder)]
    assert main([*words, "--check"]) == 1
    assert main(words) == 0
    assert "75.0 (70.0 to 80.0)" in capsys.readouterr().out
    assert main([*words, "--check"]) == 0
    files = {path.name for path in folder.iterdir()} - {"results"}
    figures = {f"{kind}_{name}.{form}" for kind in names for name in ("light", "dark") for form in ("svg", "png")}
    assert files == {"report.md", "report.csv", *figures}
    page = (folder / "report.md").read_text()
    assert "- smga: done, diverged" in page and "abc1234" in page and "one, 1 thread(s) of 2 cores" in page
    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    assert [row["status"] for row in rows].count("done") == 4 and rows[0]["memory_mb.max"] in ("", "100.0")
    changed = result("frozen", "1235")
    (folder / "results" / "frozen0.json").write_text(json.dumps(changed))
    capsys.readouterr()
    assert main([*words, "--check"]) == 1
    assert "report.md is stale" in capsys.readouterr().err


def test_a_mixed_or_missing_table_is_refused(folder: Path, capsys) -> None:
    other = result("full", "5555")
    other["meta_info"]["hardware"]["processor"] = "another"
    (folder / "results" / "full0.json").write_text(json.dumps(other))
    assert main(["bench", "report", str(folder)]) == 2
    assert "full0" in capsys.readouterr().err
    with pytest.raises(DmgalError, match="no results to report"):
        load(folder / "nothing")
