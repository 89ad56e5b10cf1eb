"""Train, stop, resume, evaluate and compare on the command line, with frames on disk."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import dmgal.recipes.train as train
from dmgal.backbones import load_backbone
from dmgal.cli import main
from dmgal.recipes.run.folder import Run
from dmgal.recipes.training.trainer import Trainer

STEPS = ["--train.steps", "4", "--train.checkpoint-every", "2", "--train.validate-every", "2"]


def finished(out, data_flags, *more, method="method/dmgal_adapter"):
    assert main(["train", method, *data_flags, *STEPS, *more, "--out", str(out)]) == 0
    return out


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory, data_flags):
    return finished(tmp_path_factory.mktemp("runs") / "adapter", data_flags)


def test_run_folder_is_complete_and_without_pickle(adapter_run):
    names = {path.relative_to(adapter_run).as_posix() for path in adapter_run.rglob("*") if path.is_file()}
    assert {"recipe.yaml", "environment.json", "log.jsonl", "adapter/adapter_model.safetensors"} <= names
    saved = {"checkpoint.json", "model.safetensors", "optimizer.safetensors"}
    assert {"adapter/weights.safetensors", *(f"checkpoints/step_00000004/{name}" for name in saved)} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".partial"))]
    losses = [entry["loss"] for entry in log(adapter_run) if "loss" in entry]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)
    assert [entry["step"] for entry in log(adapter_run) if "validation_accuracy" in entry] == [2, 4]


def test_peft_loads_saved_adapter(adapter_run):
    model = PeftModel.from_pretrained(load_backbone("tiny-clip"), str(adapter_run / "adapter"))
    assert model.peft_config["default"].backbone == "tiny-clip"


@pytest.mark.slow
def test_resumed_full_fine_tuning_is_bit_identical(tmp_path, data_flags, monkeypatch):
    """test_resume.py checks the adapter."""
    method = "method/dmgal_ft"
    whole = finished(tmp_path / "whole", data_flags, method=method)
    step = Trainer._train_step

    def stop_after_three(self, *arguments):
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop_after_three)
        assert main(["train", method, *data_flags, *STEPS, "--out", str(tmp_path / "parts")]) == 130
    parts = finished(tmp_path / "parts", data_flags, "--resume", method=method)
    one, other = (load_file(run / "checkpoints" / "step_00000004" / "model.safetensors") for run in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    one, other = (load_file(run / "checkpoints" / "step_00000004" / "optimizer.safetensors") for run in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert [e["loss"] for e in log(whole) if "loss" in e][3] == [e["loss"] for e in log(parts) if "loss" in e][-1]


def test_existing_run_is_not_overwritten(adapter_run, data_flags, capsys):
    before = (adapter_run / "log.jsonl").read_bytes()
    assert main(["train", "method/dmgal_adapter", *data_flags, *STEPS, "--out", str(adapter_run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    changed = ["--resume", "--train.learning-rate", "1.0"]
    assert main(["train", "method/dmgal_adapter", *data_flags, *STEPS, *changed, "--out", str(adapter_run)]) == 2
    assert "train.learning_rate=1.0" in capsys.readouterr().err
    assert (adapter_run / "log.jsonl").read_bytes() == before


def test_evaluation_is_reproducible_and_reports_reversals(adapter_run, capsys):
    words = ["evaluate", str(adapter_run), "--episodes", "20", "--quiet"]
    results = []
    for _ in range(2):
        assert main(words) == 0
        results.append(
            json.loads((adapter_run / "results" / "test_2way_1shot_1query_20episodes_seed0.json").read_text())[
                "results"
            ]
        )
    assert results[0] == results[1]
    assert set(results[0]) == {"accuracy", "reversal_two_way", "reversal_four_way"}
    assert "reversal four way" in capsys.readouterr().out


def test_comparison_is_paired_on_the_same_episodes(adapter_run, tmp_path, save_run, capsys):
    frozen = save_run(tmp_path / "frozen", "frozen", "--train.steps", "0")
    out = tmp_path / "comparison.json"
    words = [
        "compare",
        str(frozen),
        str(adapter_run),
        str(frozen),
        "--episodes",
        "30",
        "--out",
        str(out),
        "--quiet",
    ]
    assert main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert len({row["results"]["accuracy"]["episodes_hash"] for row in rows}) == 1
    assert rows[2]["difference_to_first"] == {"points": 0.0, "half_width": 0.0}
    assert rows[0]["trained_parameters"] == 0 < rows[1]["trained_parameters"] < 0.1 * rows[1]["visual_tower_parameters"]
    difference = rows[1]["results"]["accuracy"]["percent"] - rows[0]["results"]["accuracy"]["percent"]
    assert rows[1]["difference_to_first"]["points"] == pytest.approx(difference, abs=2e-3)
    table = capsys.readouterr().out
    assert "difference" in table and "adapter" in table


def test_objects_replace_recipe_parts(tmp_path, frame_folders):
    from dmgal.episodes.heads import FrameAligned
    from dmgal.recipes.run.config import EpisodeConfig, Recipe, TrainConfig
    from dmgal.videos import VideoCatalog

    recipe = Recipe(
        adapter={"peft_type": "DMGAL"},
        episode=EpisodeConfig(n_way=2, n_query=1),
        train=TrainConfig(steps=1, validation_episodes=2, validate_every=1),
    )
    head = FrameAligned(center="video", logit_scale=10.0)
    run = train.run(recipe, tmp_path / "run", head=head, catalog=VideoCatalog.from_folders(frame_folders), quiet=True)
    assert "head.log_scale" in load_file(run.weights)


def test_too_few_videos_or_classes_raise(tmp_path, data_flags, capsys):
    out = tmp_path / "run"
    for flags, message in ((["--shots", "4"], "k_shot 4 + n_query 1"), (["--ways", "10"], "n_way=10")):
        assert main(["train", "method/smga", *data_flags, *STEPS, *flags, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_exploding_loss_stops_run_and_saves_nothing(tmp_path, data_flags, capsys):
    out = tmp_path / "run"
    flags = [*data_flags, *STEPS, "--train.learning-rate", "1e30", "--train.warmup-steps", "0"]
    flags += ["--train.max-bad-losses", "3"]
    assert main(["train", "method/smga", *flags, "--out", str(out)]) == 2
    assert "not a finite number" in capsys.readouterr().err
    assert "NaN" not in (out / "log.jsonl").read_text() and not out.joinpath("checkpoints").exists()
    assert main(["evaluate", str(out), "--quiet"]) == 2
    assert "no trained weights yet" in capsys.readouterr().err


def test_damaged_weights_raise(adapter_run, tmp_path, capsys):
    for name in ("adapter/weights.safetensors", "adapter/adapter_model.safetensors"):
        damaged = tmp_path / Path(name).stem
        shutil.copytree(adapter_run, damaged)
        (damaged / name).write_bytes(b"not tensors")
        assert main(["evaluate", str(damaged), "--quiet"]) == 2
        assert "what to do" in capsys.readouterr().err


def test_truncated_log_line_is_dropped(adapter_run, tmp_path):
    whole = log(adapter_run)
    shutil.copy(adapter_run / "log.jsonl", tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert Run(tmp_path).rewind_log(step=4, validated=4) == whole
    assert log(tmp_path) == whole


def test_runs_on_different_data_are_not_compared(adapter_run, tmp_path, save_run, frame_folders, capsys):
    root = tmp_path / "other"
    shutil.copytree(frame_folders, root)
    rows = (root / "split.csv").read_text().splitlines()
    (root / "split.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    flags = ["--data.root", str(root), "--data.split-file", str(root / "split.csv")]
    other = save_run(tmp_path / "run", "dmgal_adapter", *flags)
    assert main(["compare", str(adapter_run), str(other), "--episodes", "5", "--quiet"]) == 2
    assert "the same episodes" in capsys.readouterr().err


def test_head_losses_are_weighted_and_logged_separately(tmp_path, data_flags, capsys):
    flags = [*data_flags, *STEPS, "--train.loss-weights.base_classes", "0.5"]
    words = ["train", "method/hyrsm", *flags, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    entries = [entry for entry in log(tmp_path / "run") if "loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        losses = entry["losses"]
        assert set(losses) == {"cross_entropy", "base_classes"}
        assert entry["loss"] == pytest.approx(losses["cross_entropy"] + 0.5 * losses["base_classes"])
    # the number of training classes is a part of the resolved recipe, so that evaluation builds the same head
    assert "num_base_classes: 6" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "4", "--quiet"]) == 0
    words = ["train", "method/smga", *flags[:-2], "--train.loss-weights.contrast", "1", "--out", str(tmp_path / "no")]
    assert main(words) == 2
    assert "train.loss_weights.contrast" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("trx", "bi_mhm", "frame_aligned", "prototype")]


@pytest.mark.parametrize("method", ["strm", "otam", *MORE])
def test_every_method_takes_a_step(tmp_path, data_flags, method):
    flags = [*data_flags, "--train.steps", "1", "--train.validation-episodes", "2"]
    assert main(["train", f"method/{method}", *flags, "--out", str(tmp_path / "run")]) == 0
    assert [entry["step"] for entry in log(tmp_path / "run") if "loss" in entry] == [1]


def test_nothing_to_train_raises(tmp_path, data_flags, capsys):
    assert main(["train", "method/frozen", *data_flags, *STEPS, "--out", str(tmp_path / "run")]) == 2
    assert "nothing to train" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_and_unreadable_videos_and_empty_classes_raise(tmp_path, frame_folders, capsys):
    root, out = tmp_path / "root", tmp_path / "run"
    shutil.copytree(frame_folders, root)
    flags = ["--data.root", str(root), "--ways", "2", "--queries", "1", "--data.num-workers", "1", "--quiet", *STEPS]
    video = next(path for path in sorted((root / "val").glob("*/0")))
    for frame in video.glob("*.png"):
        frame.write_bytes(b"not a picture")
    assert main(["train", "method/smga", *flags, "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert str(video) in message and "Traceback" not in message
    assert multiprocessing.active_children() == []
    shutil.rmtree(out, ignore_errors=True)
    split_file = ["--data.split-file", str(root / "split.csv")]
    shutil.rmtree(video)
    assert main(["train", "method/smga", *flags, *split_file, "--out", str(out)]) == 2
    assert "1 of" in capsys.readouterr().err
    shutil.rmtree(video.parent)
    video.parent.mkdir()
    assert main(["train", "method/smga", *flags, "--out", str(out)]) == 2
    assert video.parent.name in capsys.readouterr().err
    assert not out.exists()


def test_unknown_names_and_adapter_of_another_backbone_raise(adapter_run, tmp_path, data_flags, capsys):
    out, layer = tmp_path / "run", tmp_path / "layer.yaml"
    layer.write_text("backbone: {nmae: tiny-clip}")
    for words, message in (
        (["method/smga", "--backbone.name", "tiny-klip"], "tiny-klip"),
        (["method/smga", str(layer)], "did you mean backbone.name"),
        (["method/smga", "--adapter.botleneck", "3"], "adapter.botleneck"),
        (["method/smga", "--head.centre", "video"], "head.centre"),
    ):
        assert main(["train", *words, *data_flags, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    other = tmp_path / "other"
    shutil.copytree(adapter_run, other)
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("name: tiny-clip", "name: open_clip:ViT-S-32-alt"))
    assert main(["evaluate", str(other), "--quiet"]) == 2
    assert "belongs to another backbone" in capsys.readouterr().err
    assert not (other / "results").exists() or (adapter_run / "results").exists()
