"""The matrix of a benchmark: its cells, what its processes leave, and what is refused. Processes are stand-ins."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import small_recognizer
from torch.testing import assert_close

from dmgal.bench import efficiency
from dmgal.bench.matrix import measurements, runner
from dmgal.bench.matrix.cell import Job, run_cell, status_of, write_result
from dmgal.bench.matrix.experiment import experiment_as_json, experiment_from, read_experiment
from dmgal.bench.matrix.results import read_results, status
from dmgal.bench.matrix.runner import Runner
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import EpisodeConfig, Recipe
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.encoding import Keep
from dmgal.recipes.run.evaluation import Protocol, encode
from dmgal.recipes.run.probe import encode_for_both, encode_for_probe

EXPERIMENTS = Path(efficiency.__file__).parent / "experiments"
SMALL = {"methods": ["frozen", "lora", "smga"], "recipe": {"train": {"steps": 7}}}
MATRIX = {
    **SMALL,
    "variants": [{"name": "narrow: 12", "methods": ["smga"], "recipe": {"adapter": {"bottleneck": 12}}}],
    "seeds": [0, 1],
    "tests": {"other": {"root": "videos"}},
}


def test_cells_are_methods_variants_and_seeds() -> None:
    experiment = experiment_from(MATRIX)
    assert [cell.name.removeprefix("tiny-clip--") for cell in experiment.cells()] == [
        "frozen--1shot--seed0",  # trains nothing, so it does not depend on the seed
        *(f"{method}--1shot--seed{seed}" for method in ("lora", "smga") for seed in (0, 1)),
        *(f"smga--narrow-12--1shot--seed{seed}" for seed in (0, 1)),
    ]
    by_name = {cell.name: cell.recipe for cell in experiment.cells()}
    assert by_name["tiny-clip--frozen--1shot--seed0"].train.steps == 0  # the method's own value
    narrow = by_name["tiny-clip--smga--narrow-12--1shot--seed1"]
    assert (narrow.train.steps, narrow.train.seed) == (7, 1)
    assert narrow.adapter == {"peft_type": "DMGAL", "cmga_blocks": [], "bottleneck": 12}
    assert experiment_from(json.loads(json.dumps(experiment_as_json(experiment)))) == experiment


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"methods": ["frozn"]}, "did you mean method/frozen"),
        ({"methods": []}, "an axis is empty"),
        ({"methods": ["smga", "smga"]}, "occur twice: tiny-clip--smga"),
        ({"sedes": [1]}, "did you mean seeds"),
        ({"recipe": {"train": {"stps": 1}}}, "did you mean train.steps"),
        ({"variants": [{"name": "a", "recipe": {}, "methods": ["aim"]}]}, "not listed: aim"),
        ({"variants": [{"name": "a", "recpe": {}}]}, "did you mean recipe"),
        ({"tests": {"weizmann": {"root": "videos", "grop": "a"}}}, "did you mean group"),
        ({"tests": {"weizmann": {"split_file": "a.csv"}}}, "each with its root"),
        ({"seeds": ["one"]}, "whole number"),
        ({"methods": "frozen"}, "received: methods: 'frozen'"),
        ({"methods": {"frozen": 1}}, "received: methods: {'frozen': 1}"),
        ({"methods": None, "variants": [{"name": "a"}]}, "received: methods: None"),
        ({"variants": [{"name": "a"}]}, "name, without recipe"),
    ],
)
def test_mistakes_in_an_experiment_are_named(tmp_path: Path, change: dict, part: str, capsys) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**SMALL, **change}))
    assert main(["bench", str(path), "--out", str(tmp_path / "out")]) == 2
    assert part in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_method_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("adapter: {peft_type: BITFIT}\n")
    (cell,) = experiment_from({**SMALL, "methods": [str(path)]}).cells()
    assert cell.name == "tiny-clip--mine--1shot--seed0" and cell.recipe.adapter == {"peft_type": "BITFIT"}


def write_clips(root: Path, *videos: str) -> None:
    """Write videos of two small frames, whose gray depends on their path."""
    for video in videos:
        (root / video).mkdir(parents=True)
        for frame in range(2):
            Image.new("L", (48, 48), (37 * sum(map(ord, video)) + 50 * frame) % 256).save(root / video / f"{frame}.png")


def test_a_cell_is_tested_on_other_data_with_their_own_groups(tmp_path: Path) -> None:
    """The other data have a split file with persons. With one person per class, no episode is possible."""
    own, other = tmp_path / "own", tmp_path / "other"
    write_clips(
        own, *(f"{split}/{split}_{name}" for split in ("train", "val", "test") for name in ("a/1", "b/1", "a/2", "b/2"))
    )
    rows = [(name, f"{name}_{person}") for name in ("run", "jump") for person in ("ann", "bob")]
    write_clips(other, *(video for _, video in rows))
    lines = (f"test,{name},{video},{video[-3:]},{name}" for name, video in rows)
    (other / "mine.csv").write_text("\n".join(["split,class_name,video,person,place", *lines]) + "\n")
    tests = {"clips": {"root": str(other), "split_file": str(other / "mine.csv"), "group": "person"}}
    recipe = {"data": {"root": str(own), "num_frames": 2, "num_workers": 0}, "episode": {"n_way": 2, "n_query": 1}}
    recipe["train"] = {"validation_episodes": 2}
    tree = {"methods": ["frozen"], "recipe": recipe, "episodes": 20, "test_shots": [1], "tests": tests}
    job = Job(experiment_from(tree), "tiny-clip--frozen--1shot--seed0", tmp_path / "run", tmp_path / "result.json")
    info = run_cell(job)
    of_clips = info["tests"]["clips"]["1"]
    assert of_clips["accuracy"]["episodes"] == 20 and len(of_clips["accuracy"]["correct"]) == 20
    assert of_clips["accuracy"]["episodes_hash"] != info["results"]["1"]["accuracy"]["episodes_hash"]
    assert (tmp_path / "run" / "states" / "clips").is_dir() and "percent" in of_clips["probe"]
    tests["clips"]["group"] = "place"
    with pytest.raises(DmgalError, match="group"):
        run_cell(replace(job, experiment=experiment_from(tree), run=tmp_path / "run"))


@pytest.mark.parametrize("method", ["frozen", "dmgal_adapter", "dmgal_ft"])
def test_one_encoding_has_the_states_of_both_heads(method: str, tmp_path: Path) -> None:
    write_clips(tmp_path, *(f"test/{name}/{clip}" for name in ("a", "b") for clip in range(3)))
    tree = {"data": {"root": str(tmp_path), "num_frames": 2, "num_workers": 0}, "episode": {"n_way": 2, "n_query": 1}}
    (cell,) = experiment_from({"methods": [method], "recipe": tree}).cells()
    recognizer, catalog = build_recognizer(cell.recipe), build_catalog(cell.recipe.data, progress=False)
    protocol, keep = Protocol(), Keep("disk", tmp_path / "states")
    both = encode_for_both(recognizer, cell.recipe, catalog, protocol, keep)
    alone = [one(recognizer, cell.recipe, catalog, protocol, progress=False) for one in (encode, encode_for_probe)]
    assert len([*(tmp_path / "states").rglob("key.json")]) == 1
    for one, other in zip(both, alone, strict=True):
        assert_close(one.states.tensors(), other.states.tensors())


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_bundled_experiments_are_valid(path: Path) -> None:
    assert read_experiment(path).cells()


def test_every_ablation_is_an_adapter_that_can_be_built() -> None:
    cells = read_experiment(EXPERIMENTS / "ablations.json").cells()
    first = [cell for cell in cells if cell.seed == 0]
    assert len(cells) == 2 * len(first) == 42 and first[0].variant == ""
    for cell in first:
        assert build_recognizer(cell.recipe).encoder.backbone.peft_config["default"].peft_type == "DMGAL"


def test_users_data_are_an_experiment(tmp_path: Path) -> None:
    split = tmp_path / "mine.csv"
    options = efficiency.Bench(data=split, methods=("lora",), steps=9, ways=3, test_shots=(2,))
    (cell,) = efficiency.experiment_of(options).cells()
    assert (cell.recipe.data.root, cell.recipe.data.split_file) == (tmp_path, split)
    assert (cell.recipe.train.steps, cell.recipe.episode.n_way) == (9, 3)
    (cell,) = efficiency.experiment_of(replace(options, data=tmp_path)).cells()
    assert (cell.recipe.data.root, cell.recipe.data.split_file) == (tmp_path, None)
    for both_or_neither in (replace(options, data=None), replace(options, experiment=split)):
        with pytest.raises(DmgalError, match="needs one experiment"):
            efficiency.experiment_of(both_or_neither)
    with pytest.raises(DmgalError, match="described twice") as twice:
        efficiency.experiment_of(replace(options, data=None, experiment=EXPERIMENTS / "ablations.json"))
    assert "--methods, --steps, --ways, --test-shots" in str(twice.value)


ENDINGS = {
    "frozen": ("done", ""),
    "lora": (None, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    "smga": (None, "print('a bug'); raise SystemExit(3)"),
    "bitfit": (None, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
    "aim": (None, "raise SystemExit(75)"),
}
"""Status that a stand-in writes for a method, or the program that it runs instead."""


class StandIns:
    """Processes that leave a result, or end as in ``ENDINGS``."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, job_file: Path, log: Path, variables) -> subprocess.Popen:
        job = Job.read(job_file)
        method = job.find().method
        self.started.append(method)
        ending, program = ENDINGS[method]
        if ending:
            results = {"1": {"accuracy": {"percent": 50.0, "half_width": 1.0}}}
            write_result(job, {"status": ending, "results": results}, "", RUNNING.meta, 1.0)
        with log.open("w") as file:
            return subprocess.Popen([sys.executable, "-S", "-c", program], stdout=file, stderr=file)


RUNNING: Runner


def make_runner(folder: Path, starts: StandIns, **options) -> Runner:
    global RUNNING
    tree = {**SMALL, "methods": list(ENDINGS), **options.pop("change", {})}
    RUNNING = Runner(experiment_from(tree), folder, quiet=True, start=starts, **options)
    return RUNNING


@pytest.fixture
def clean_commit(monkeypatch) -> None:
    """The commit of a checkout without changes."""
    monkeypatch.setattr(runner, "environment", lambda: {**META, "hardware": dict(META["hardware"])})


META = {"date": "2026-11-29", "git_revision": "abc1234", "versions": {"torch": "2"}, "hardware": {"processor": "one"}}


def test_every_ending_leaves_its_status_and_the_rest_goes_on(tmp_path: Path, clean_commit) -> None:
    starts = StandIns()
    results = make_runner(tmp_path, starts, processes=2).run()
    found = {result["run_info"]["cell"]["method"]: status(result) for result in results.values()}
    assert found == {"frozen": "done", "lora": "out of memory", "smga": "failed", "bitfit": "failed"}
    errors = {r["run_info"]["cell"]["method"]: r["run_info"]["error_msg"] for r in results.values()}
    assert "SIGKILL" in errors["lora"] and "SIGSEGV" in errors["bitfit"] and "3.\na bug" in errors["smga"]
    assert [status(result) for result in read_results(tmp_path / "cancelled").values()] == ["cancelled"]
    starts.started.clear()
    make_runner(tmp_path, starts).run()
    assert starts.started == ["aim"]  # finished cells never run again, a cancelled one resumes
    starts.started.clear()
    make_runner(tmp_path, starts, retry=True).run()
    assert set(starts.started) == {"lora", "smga", "bitfit", "aim"}


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("hardware", {"processor": "another", "threads": 1}, "hardware.processor='another'"),
        ("versions", {"torch": "3"}, "versions.torch='3'"),
        ("git_revision", "def5678", "git_revision='def5678'"),
    ],
)
def test_other_hardware_and_code_are_refused_by_name(tmp_path, clean_commit, monkeypatch, part, value, named) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    change = {"methods": ["frozen"]}
    make_runner(tmp_path, StandIns(), change=change).run()
    monkeypatch.setitem(META, part, value)
    with pytest.raises(DmgalError) as error:
        make_runner(tmp_path, StandIns(), change=change).run()
    assert named in str(error.value) and "tiny-clip--frozen" in str(error.value)


def test_a_result_of_other_settings_is_refused_by_name(tmp_path: Path, clean_commit) -> None:
    starts = StandIns()
    make_runner(tmp_path, starts, change={"methods": ["frozen"]}).run()
    for change, named in (({"episodes": 9}, "test.episodes=9"), ({"shots": [2]}, None)):
        again = make_runner(tmp_path, starts, change={"methods": ["frozen"], **change})
        if named is None:
            again.run()  # another cell
            assert starts.started == ["frozen", "frozen"]
        else:
            with pytest.raises(DmgalError, match=named):
                again.run()


def test_results_of_uncommitted_code_are_temporary(tmp_path: Path, clean_commit, monkeypatch) -> None:
    monkeypatch.setitem(META, "git_revision", "abc1234-dirty")
    make_runner(tmp_path, StandIns(), change={"methods": ["frozen"]}).run()
    assert list(read_results(tmp_path / "temporary")) == ["tiny-clip--frozen--1shot--seed0"]
    assert not read_results(tmp_path / "results")


def test_an_interruption_stops_the_running_cells(tmp_path: Path, clean_commit, monkeypatch) -> None:
    monkeypatch.setitem(ENDINGS, "lora", (None, "import time; time.sleep(60)"))
    starts = StandIns()
    interrupted = make_runner(tmp_path, starts, change={"methods": ["lora", "smga"]})
    wait = subprocess.Popen.wait

    def interrupt_first(process, timeout=None):
        if timeout is None and signal.SIGTERM not in sent:
            sent.append(signal.SIGTERM)
            interrupted.stop()
        return wait(process, timeout)

    sent: list[int] = []
    monkeypatch.setattr(subprocess.Popen, "wait", interrupt_first)
    interrupted.run()
    assert starts.started == ["lora"] and not read_results(tmp_path / "results")
    assert list(read_results(tmp_path / "cancelled")) == ["tiny-clip--lora--1shot--seed0"]


def test_plan_starts_nothing_and_states_the_cost(tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.json"
    data = {"data": {"generate": "moving_shapes", "root": str(tmp_path / "videos"), "num_frames": 2}}
    data["episode"] = {"n_way": 2, "n_query": 1}
    variants = [{"name": "wrong", "methods": ["smga"], "recipe": {"adapter": {"smga_blocks": [99]}}}]
    path.write_text(json.dumps({"methods": ["smga"], "recipe": data, "variants": variants, "episodes": 10}))
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "2 cells to run, 0 finished" in printed and "trained parameters" in printed
    assert "cannot run: " in printed and "in total about" in printed
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.json"]


def test_errors_have_a_status() -> None:
    diverged = DmgalError("Training diverged.", received="the loss is not a finite number")
    no_memory = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert status_of(diverged) == "diverged"
    assert {status_of(error) for error in (no_memory, MemoryError(), torch.OutOfMemoryError())} == {"out of memory"}
    assert {status_of(error) for error in (ValueError("a bug"), DmgalError("A mistake."))} == {"failed"}


def test_operations_are_those_of_a_count_by_hand() -> None:
    """One video of 8 frames through tiny-clip: 48 pixels, patches of 8, 4 blocks of width 96, 128 features."""
    model = small_recognizer("nothing", 48, 8)
    model.train(False)
    tokens, patches, width, features = 37, 36, 96, 128
    block = 2 * tokens * width * (3 * width + width + 2 * 4 * width) + 4 * tokens**2 * width
    frame = 2 * patches * width * 3 * 8**2 + 4 * block + 2 * width * features
    recipe = Recipe(episode=EpisodeConfig(n_way=2, n_query=1))
    found = measurements.operations(model, replace(recipe, train=replace(recipe.train, steps=0)))
    assert found == {"video": round(8 * frame / 1e9, 6), "task": None} and not model.training


def test_operations_of_a_training_task_add_the_backward_pass() -> None:
    """Everything trains: each product has two more in the backward pass, except those of the first layer's input."""
    recipe, model = Recipe(episode=EpisodeConfig(n_way=2, n_query=1)), small_recognizer("everything", 48, 8)
    found = measurements.operations(model, recipe)
    videos = 4 * found["video"]
    assert 2.9 * videos < found["task"] < 3.1 * videos
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_is_sampled_while_the_context_is_open() -> None:
    with measurements.MemorySamples() as memory:
        block = torch.ones(8 * 2**20)  # 32 MB
        while len(memory.megabytes) < 3:
            block.add_(1)
    found = memory.as_json()
    assert found["samples"] >= 3 and 0 < found["p99"] <= found["max"] and found["mean"] <= found["p99"]


def test_an_unreadable_experiment_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("[1, 2")
    with pytest.raises(DmgalError, match="experiment cannot be read"):
        read_experiment(path)
