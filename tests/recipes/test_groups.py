"""``data.group`` in training, evaluation, comparison and benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmgal.bench import efficiency
from dmgal.cli import main
from dmgal.episodes.sampler import TaskSampler
from dmgal.recipes.run.config import parse
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.evaluation import Protocol, samplers
from dmgal.recipes.train import Train
from dmgal.recipes.training.tasks import TrainingData

CLIP = r"/(\d)$"
"""Pattern of the clip's number: the n-th clips of all classes are a group."""


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "frozen", "frozen", "--train.steps", "0")


def assert_grouped(sampler: TaskSampler, videos: tuple[str, ...]) -> None:
    for episode in (sampler[number] for number in range(10)):
        support, query = ({videos[video][-1] for video in side} for side in (episode.support, episode.query))
        assert not support & query


def test_training_and_test_tasks_are_grouped(data_flags) -> None:
    words = ["method/frozen", *data_flags, "--data.group", CLIP, "--train.steps", "10"]
    recipe = parse(words, prog="test", description="", wrapper=Train)[0].recipe
    catalog = build_catalog(recipe.data)
    base, novel = catalog.split("train"), catalog.split("test")
    assert_grouped(TrainingData(recipe, base, (48, 48))._dataset.sampler, base.videos)
    by_name = samplers(novel, recipe, Protocol(episodes=10))
    assert set(by_name) == {"accuracy", "reversal_two_way", "reversal_four_way"}
    for sampler in by_name.values():
        assert_grouped(sampler, novel.videos)


def test_evaluation_and_comparison_are_grouped_with_the_same_cache(run, tmp_path, capsys) -> None:
    short = ["--episodes", "60", "--cache", str(tmp_path / "states")]
    assert main(["evaluate", str(run), *short]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), *short, "--data.group", CLIP]) == 0
    assert "0 of 16 videos encoded" in capsys.readouterr().err
    plain, grouped = (
        json.loads((run / "results" / f"test_2way_1shot_1query_60episodes_seed0{end}.json").read_text())
        for end in ("", "_grouped")
    )
    assert grouped["protocol"]["data"]["group"] == CLIP and "group" not in plain["protocol"]["data"]
    hashes = [one["results"]["accuracy"]["episodes_hash"] for one in (plain, grouped)]
    assert hashes[0] != hashes[1]
    out = tmp_path / "comparison.json"
    words = ["compare", str(run), "--episodes", "60", "--quiet", "--data.group", CLIP, "--out", str(out)]
    assert main(words) == 0
    assert json.loads(out.read_text())["rows"][0]["results"] == grouped["results"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.group", "^(t|v)"], "with 4 videos of 1 group"),
        (["--data.group", CLIP, "--shots", "4"], "too few videos"),
        (["--data.group", "person"], "no column 'person'"),
        (["--data.group", "(["], "pattern of the groups is not valid"),
        (["--data.group", CLIP, "--exact"], "excludes some episodes"),
    ],
)
def test_an_impossible_grouping_is_one_message_before_encoding(run, tmp_path, capsys, flags, message) -> None:
    cache = tmp_path / "states"
    assert main(["evaluate", str(run), "--episodes", "10", "--cache", str(cache), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1 and "encoded" not in error


def test_a_benchmark_takes_groups_for_its_own_and_other_data(tmp_path) -> None:
    options = efficiency.Bench(data=tmp_path, group=CLIP, methods=("lora",))
    (cell,) = efficiency.experiment_of(options).cells()
    assert cell.recipe.data.group == CLIP
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"methods": ["lora"], "tests": {"other": {"root": "videos", "group": "person"}}}))
    other = efficiency.experiment_of(efficiency.Bench(experiment=path)).tests["other"]
    assert other.group == "person"
