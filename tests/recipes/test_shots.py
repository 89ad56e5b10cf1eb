"""``dmgal evaluate --curve``: accuracy by the number of shots."""

from __future__ import annotations

import json

import pytest

from dmgal.cli import main
from dmgal.episodes import EpisodeSampler
from dmgal.episodes.sampler import FewerShots
from dmgal.errors import DmgalError
from dmgal.recipes.run.shots import parse_shots

SHAPES = ("disc", "square", "cross", "bar")
LABELS = [label for label in range(4) for _ in range(8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, save_run):
    return save_run(tmp_path_factory.mktemp("runs") / "smga", "smga")


def test_fewer_shots_are_the_first_ones_and_keep_the_queries():
    full = EpisodeSampler(LABELS, 3, 5, 2, 20, seed=1)
    for episode, one, few in zip(full, FewerShots(full, 5, 5), FewerShots(full, 2, 2), strict=True):
        assert one == episode and few.query == episode.query and few.classes == episode.classes
        assert few.support == tuple(episode.support[5 * label + shot] for label in range(3) for shot in range(2))
        assert few.support_labels == (0, 0, 1, 1, 2, 2)


def test_a_range_gives_every_class_a_number_of_its_own():
    full = EpisodeSampler(LABELS, 3, 5, 2, 100, seed=1)
    counts = [[one.support_labels.count(label) for label in range(3)] for one in FewerShots(full, 1, 5)]
    assert {count for row in counts for count in row} == {1, 2, 3, 4, 5}
    assert any(len(set(row)) > 1 for row in counts)
    assert list(FewerShots(full, 1, 5)) == list(FewerShots(full, 1, 5))
    with pytest.raises(DmgalError, match="reduce the shots"):
        FewerShots(full, 1, 6)


def test_shots_are_parsed():
    assert [parse_shots(text) for text in ("0", "5", "1-5")] == [(0, 0), (5, 5), (1, 5)]
    for text in ("", "-1", "5-1", "0-3", "two", "1-2-3", "1.5", "²"):
        with pytest.raises(DmgalError, match="no number of shots"):
            parse_shots(text)


def test_a_curve_has_the_accuracies_of_its_shots(run, tmp_path, capsys):
    out = tmp_path / "new" / "curve.json"
    assert main(["evaluate", str(run), "--curve", "1", "3", "1-3", "--episodes", "40", "--out", str(out)]) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    assert "1 shot  " in printed and "1-3 shots" in printed
    assert [point["shots"] for point in result["curve"]] == ["1", "3", "1-3"]
    assert result["curve"][0]["gain"] is None and "k_shot" not in result["protocol"]
    first, second = result["curve"][:2]
    assert second["percent"] - first["percent"] == pytest.approx(second["gain"], abs=0.01)
    [path] = (run / "results").glob("*curve_1_3_1-3*")
    assert json.loads(path.read_text()) == result
    single = tmp_path / "single.json"
    assert main(["evaluate", str(run), "--shots", "3", "--episodes", "40", "--out", str(single)]) == 0
    assert json.loads(single.read_text())["results"]["accuracy"]["percent"] == second["percent"]


def test_a_curve_starts_with_class_names(run, frame_folders, tmp_path):
    names = sorted(path.name for split in ("train", "val", "test") for path in (frame_folders / split).iterdir())
    words = [f"{size} {color} {shape}" for size in ("small", "large") for color in ("red", "blue") for shape in SHAPES]
    rows = [f"{name},{text}" for name, text in zip(names, words, strict=False)]
    (tmp_path / "words.csv").write_text("\n".join(["class_name,description", *rows]) + "\n")
    out, text = tmp_path / "curve.json", ["--text.descriptions", str(tmp_path / "words.csv")]
    assert main(["evaluate", str(run), "--curve", "0", "1", *text, "--episodes", "20", "--out", str(out)]) == 0
    zero, one = json.loads(out.read_text())["curve"]
    assert zero["text"]["use"] == "only" and one["text"] is None and one["gain"] is not None


def test_impossible_curves_are_one_message(run, capsys):
    for words, message in (
        (["--curve", "1", "9"], "too few videos"),
        (["--curve", "x"], "no number of shots"),
        (["--curve", "1", "--exact"], "own numbers of shots"),
        (["--curve", "0"], "knows no word"),  # tiny-clip has no words for motions
    ):
        assert main(["evaluate", str(run), *words, "--episodes", "5"]) == 2
        assert message in capsys.readouterr().err
