"""``dmgal evaluate`` and ``dmgal compare`` from states on disk, exactly, until an interval is narrow, and in depth."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
import torch

from dmgal.cli import main

ROOT = Path(__file__).resolve().parents[2]
NUM_VIDEOS = 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory, save_run) -> Path:
    """A Cmga, a method without a task layer in two seeds, and the frozen backbone."""
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "cmga", "dmgal_adapter")
    save_run(folder / "smga0", "smga")
    save_run(folder / "smga1", "smga", "--train.seed", "1")
    save_run(folder / "frozen", "frozen", "--train.steps", "0")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread like launched processes, because sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def result(run: Path, name: str) -> dict:
    return json.loads((run / "results" / f"test_2way_1shot_1query_{name}.json").read_text())


def evaluated(run: Path, *flags: str, episodes: int = 60) -> dict:
    assert main(["evaluate", str(run), "--episodes", str(episodes), *flags]) == 0
    return result(run, f"{episodes}episodes_seed0")["results"]


@pytest.mark.parametrize("name", ["cmga", "smga0"])
def test_cached_states_give_the_results_of_states_in_memory(runs, name, tmp_path, capsys) -> None:
    run, cache = runs / name, ("--cache", str(tmp_path / "states"))
    first = evaluated(run, *cache)
    assert f"{NUM_VIDEOS} of {NUM_VIDEOS} videos encoded" in capsys.readouterr().err
    again = evaluated(run, *cache)
    assert f"0 of {NUM_VIDEOS} videos encoded" in capsys.readouterr().err
    assert first == again == evaluated(run, "--states", "memory")
    evaluated(run, "--shots", "2", *cache)
    assert f"0 of {NUM_VIDEOS} videos encoded" in capsys.readouterr().err


def test_float16_is_marked_inexact(runs, capsys) -> None:
    run = runs / "smga0"
    assert main(["evaluate", str(run), "--episodes", "60", "--states", "float16"]) == 0
    assert "INEXACT" in capsys.readouterr().out
    assert "inexact" in result(run, "60episodes_seed0_float16")
    assert "inexact" not in json.dumps(evaluated(run))


def kept(folder: Path) -> dict[str, bytes]:
    """Every file of the states but locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_two_launched_processes_are_bit_identical_to_one(runs, tmp_path, one_thread) -> None:
    words = ["-m", "dmgal.recipes.evaluate", str(runs / "cmga"), "--episodes", "1060"]
    words += ["--cache", str(tmp_path / "cache")]
    done = forked.run(words, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written: ") == 1
    together = result(runs / "cmga", "1060episodes_seed0")["results"]
    assert together == evaluated(runs / "cmga", "--cache", str(tmp_path / "alone"), episodes=1060)
    assert kept(tmp_path / "cache") == kept(tmp_path / "alone") != {}


def test_exact_accuracy_is_near_sampled_accuracy_and_raises_without_closed_form(runs, capsys) -> None:
    run = runs / "smga0"
    assert main(["evaluate", str(run), "--exact"]) == 0
    exact = result(run, "allepisodes_seed0")["results"]
    assert set(exact) == {"accuracy", "reversal_two_way", "reversal_four_way"}
    assert main(["evaluate", str(run), "--episodes", "3000"]) == 0
    sampled = result(run, "3000episodes_seed0")["results"]
    for name, value in exact.items():
        assert abs(value["percent"] - sampled[name]["percent"]) < 2 * sampled[name]["half_width"] + 1e-9
        assert len(value["percent_by_class"]) == 4
    capsys.readouterr()
    for flags, reason in (([str(runs / "cmga")], "task layer"), ([str(run), "--shots", "2"], "2 shots")):
        assert main(["evaluate", *flags, "--exact", "--quiet"]) == 2
        assert reason in capsys.readouterr().err


def test_interval_of_one_episode_is_null_in_json(runs, tmp_path, capsys) -> None:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    runs_given = [str(runs / name) for name in ("frozen", "smga0")]
    out = tmp_path / "comparison.json"
    assert main(["evaluate", runs_given[0], "--episodes", "1", "--quiet"]) == 0
    assert main(["compare", *runs_given, "--episodes", "1", "--out", str(out), "--quiet"]) == 0
    assert "± inf" in capsys.readouterr().out
    evaluation = runs / "frozen" / "results" / "test_2way_1shot_1query_1episodes_seed0.json"
    one, both = (json.loads(path.read_text(), parse_constant=refuse) for path in (evaluation, out))
    assert one["results"]["accuracy"]["half_width"] is None and one["results"]["accuracy"]["percent"] >= 0
    assert both["rows"][0]["results"] == one["results"] and both["pairings"][0]["half_width_over_episodes"] is None


def test_until_adds_episodes_to_a_narrow_interval(runs, capsys) -> None:
    run = runs / "smga0"
    assert main(["evaluate", str(run), "--until", "1.5", "--episodes", "1000"]) == 0
    found = result(run, "until1.5_at_least_1000episodes_seed0")["results"]["accuracy"]
    assert found["half_width"] <= 1.5 and found["episodes"] % 1000 == 0
    assert f"{found['episodes']} episodes" in capsys.readouterr().out


def test_comparison_reports_seeds_classes_and_episodes(runs, tmp_path, capsys) -> None:
    out, page = tmp_path / "comparison.json", tmp_path / "pages" / "comparison.html"
    folders = [str(runs / name) for name in ("frozen", "smga0", "smga1")]
    files = ["--out", str(out), "--page", str(page)]
    assert main(["compare", *folders, "--episodes", "300", "--queries", "2", *files, "--quiet"]) == 0
    found, text = json.loads(out.read_text()), capsys.readouterr().out
    assert [row["run"] for row in found["rows"]] == ["frozen", "smga0", "smga1"]
    for row in found["rows"]:  # the same episodes, answered by a probe of the same encoder
        assert row["probe"]["accuracy"]["episodes_hash"] == row["results"]["accuracy"]["episodes_hash"]
    assert text.splitlines()[0].endswith("probe %") and "probe %" in page.read_text()
    assert [method["runs"] for method in found["methods"]] == [["frozen"], ["smga0", "smga1"]]
    method, (pairing,) = found["methods"][1], found["pairings"]
    percents = [row["results"]["accuracy"]["percent"] for row in found["rows"]]
    assert method["percent"] == pytest.approx(sum(percents[1:]) / 2, abs=2e-3) and method["deviation_over_runs"] >= 0
    assert pairing["points"] == pytest.approx(method["percent"] - percents[0], abs=2e-3)
    low, high = pairing["bootstrap_over_classes_95"]
    assert low <= pairing["points_mean_over_classes"] <= high and len(pairing["percent_by_class"]) == 4
    for one in pairing["disagreements"]:
        assert len(one["support"]) == 2 and all(video.startswith("test/") for video in one["support"])
        for query in one["queries"]:
            assert query["answer"] != query["answer_of_first"] and query["video"].startswith(f"test/{query['class']}/")
    assert sum(n for row in found["methods"][0]["confusion"].values() for n, _ in row.values()) == 300 * 4
    for words in ("smga0 and 1 more minus frozen", "had others been drawn", "train each with 3 seeds", "they disagree"):
        assert words in text
    html = page.read_text()
    assert "smga0 and 1 more minus frozen" in html
    for name, percents in pairing["percent_by_class"].items():
        assert f"<td>{name}</td><td>{percents['first']:.1f}</td><td>{percents['method']:.1f}</td>" in html
    assert html.count("what is taken for what") == 2
    assert all(query["video"] in html for one in pairing["disagreements"] for query in one["queries"])


def test_compared_runs_have_separate_folders_in_a_cache(runs, tmp_path, capsys) -> None:
    folders = [tmp_path / place / "run" for place in ("a", "b")]
    for name, folder in zip(("frozen", "smga0"), folders, strict=True):
        shutil.copytree(runs / name, folder, ignore=shutil.ignore_patterns("states"))
        (folder / "states").write_text("no folder: nothing can be kept here")
    words = ["compare", *map(str, folders), "--episodes", "60", "--no-probe"]
    assert main([*words, "--quiet"]) == 2
    assert "pass --cache" in capsys.readouterr().err
    cache = ["--cache", str(tmp_path / "cache")]
    for encoded in (NUM_VIDEOS, 0):
        assert main([*words, *cache]) == 0
        assert capsys.readouterr().err.count(f"{encoded} of {NUM_VIDEOS} videos encoded") == 2


def test_readable_again_video_is_no_longer_bad(runs, frame_folders, tmp_path, capsys) -> None:
    """For a while its bytes came wrong, as from a disk that is far away; size and date are what they were."""
    data, cache = tmp_path / "data", ["--cache", str(tmp_path / "cache"), "--data.root", str(tmp_path / "data")]
    shutil.copytree(frame_folders, data)
    frame = sorted(data.glob("test/*/2/3.png"))[1]
    content, before = frame.read_bytes(), frame.stat()

    def comes_as(some: bytes) -> None:
        frame.write_bytes(some)
        os.utime(frame, ns=(before.st_atime_ns, before.st_mtime_ns))

    comes_as(bytes(len(content)))
    split_file = ["--data.split-file", str(data / "split.csv")]
    evaluated(runs / "frozen", *cache, *split_file, "--data.on-bad-video", "skip")
    assert f"skipped 1 of {NUM_VIDEOS} videos" in capsys.readouterr().err
    assert main(["evaluate", str(runs / "frozen"), *cache, *split_file, "--quiet"]) == 2
    assert frame.parent.name in capsys.readouterr().err
    comes_as(content)
    found = evaluated(runs / "frozen", *cache, *split_file)
    said = capsys.readouterr()
    assert "can be read now" in said.err and "skipped" not in said.err and " of 16 videos encoded" in said.err
    assert found == evaluated(runs / "frozen", *cache, *split_file) == evaluated(runs / "frozen", "--states", "memory")


def test_states_in_memory_with_several_processes_raise(runs, capsys, monkeypatch) -> None:
    from dmgal.episodes.evaluation.cache import Processes
    from dmgal.recipes import evaluate

    monkeypatch.setattr(evaluate, "launched_processes", lambda: Processes(0, 2))
    assert main(["evaluate", str(runs / "cmga"), "--states", "memory", "--quiet"]) == 2
    assert "2 processes" in capsys.readouterr().err


def test_names_with_invalid_utf8_are_evaluated_and_compared(runs, frame_folders, tmp_path, capsys) -> None:
    data, out, page = tmp_path / "data", tmp_path / "comparison.json", tmp_path / "comparison.html"
    shutil.copytree(frame_folders / "test", data / "test")
    try:
        for clip in [*data.glob("test/*/*")]:
            clip.rename(clip.with_name(f"caf\udce9 {clip.name}"))
        shutil.copytree(runs / "frozen", tmp_path / "frozen\udce9")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    shutil.copytree(runs / "smga0", tmp_path / "smga0")  # safetensors does not read from the other kind of folder
    folders = [str(tmp_path / name) for name in ("frozen\udce9", "smga0")]
    flags = ["--data.root", str(data), "--episodes", "300"]
    for folder in folders:
        for file in ("recipe.yaml", "paths.yaml"):
            text = (Path(folder) / file).read_text()
            (Path(folder) / file).write_text(re.sub("split_file: .*", "split_file: null", text))
    assert main(["evaluate", folders[0], *flags]) == 0
    assert "frozen\\xe9" in capsys.readouterr().out
    assert main(["compare", *folders, *flags, "--out", str(out), "--page", str(page)]) == 0
    text, found, html = capsys.readouterr().out, json.loads(out.read_text()), page.read_text()
    (pairing,) = found["pairings"]
    named = [query["video"] for one in pairing["disagreements"] for query in one["queries"]]
    assert named and all("caf\\xe9 " in name and name in text and name in html for name in named)
    assert all("caf\\xe9 " in name for one in pairing["disagreements"] for name in one["support"])
    assert [row["run"] for row in found["rows"]] == ["frozen\\xe9", "smga0"]
