"""Exported programs give the states of the run, for any number of videos, and recognize as the run does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmgal import ActionRecognizer
from dmgal.cli import main
from dmgal.errors import DmgalError
from dmgal.recipes.run import exported

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_recognize.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, save_run):
    folder = tmp_path_factory.mktemp("runs")
    return {name: save_run(folder / name, name) for name in ("smga", "dmgal_adapter")}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_both_halves_of_a_run_with_a_cmga_are_written_and_compared(runs, tmp_path, form, capsys):
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="needs dmgal[onnx]")
    assert main(["export", str(runs["dmgal_adapter"]), "--format", form, "--out", str(tmp_path / "out")]) == 0
    suffix = exported.SUFFIXES[form]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"encode{suffix}", f"relate{suffix}", "model.json"} <= written
    assert float(capsys.readouterr().out.split("clips: ")[1].split(" ")[0]) < 1e-4
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described["task_layer"] and described["frames"] == 4 and described["image_size"] == [48, 48]


@pytest.mark.slow
def test_int8_program_is_smaller_and_close(runs, tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="needs dmgal[onnx]")
    sizes = []
    for flags in ([], ["--int8"]):
        assert main(["export", str(runs["smga"]), *flags, "--out", str(tmp_path / "out")]) == 0
        sizes.append((tmp_path / "out" / "encode.onnx").stat().st_size)
        assert json.loads((tmp_path / "out" / "model.json").read_text())["int8"] is bool(flags)
    assert sizes[1] < 0.5 * sizes[0]
    graph = pytest.importorskip("onnx").load(tmp_path / "out" / "encode.onnx").graph
    weights = {weight.name for weight in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and weights & {*node.input}]
    assert 1e-4 < float(capsys.readouterr().out.split("clips: ")[2].split(" ")[0]) < 0.3
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".onnx", ".json", ".data")]


def test_only_onnx_is_quantized(runs, tmp_path, capsys):
    assert main(["export", str(runs["smga"]), "--int8", "--format", "torch", "--out", str(tmp_path)]) != 0
    assert "--format onnx" in capsys.readouterr().err


def test_a_program_that_differs_is_noticed(tmp_path):
    program = exported._Program(torch.nn.Linear(2, 2), "encode", "torch")
    path = program.write(tmp_path, (torch.ones(3, 2),), ({0: torch.export.Dim("videos")},))
    assert program.difference(path, (torch.ones(5, 2),)) < 1e-6
    with torch.no_grad():
        program.module.weight += 1.0
    assert program.difference(path, (torch.ones(5, 2),)) > 0.1


@pytest.mark.slow
def test_onnx_programs_recognize_without_dmgal(runs, tmp_path, write_video):
    pytest.importorskip("onnxscript", reason="needs dmgal[onnx]")
    clips = {}
    for number, name in enumerate(("first", "second")):
        for clip in range(3):
            path = tmp_path / f"{name}{clip}.mp4"
            write_video(path, range(40 * number + 3 * clip, 40 * number + 3 * clip + 9))
            clips[name, clip] = path
    recognizer = ActionRecognizer.load(runs["smga"])
    recognizer.enroll({name: [clips[name, 0], clips[name, 1]] for name in ("first", "second")})
    recognizer.save(tmp_path / "gallery.safetensors")
    assert main(["export", str(runs["smga"]), "--out", str(tmp_path / "out")]) == 0
    for name in ("first", "second"):
        command = [sys.executable, EXAMPLE, tmp_path / "out", tmp_path / "gallery.safetensors", clips[name, 2]]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found = dict(zip(printed[::2], map(float, printed[1::2]), strict=True))
        expected = {name: score.logit for name, score in recognizer.recognize(clips[name, 2]).scores.items()}
        assert max(found, key=found.get) == max(expected, key=expected.get)
        assert found == pytest.approx(expected, abs=2e-3)  # frames resized by numpy differ by one in a few pixels


def test_missing_libraries_and_unwritable_folders_give_one_message(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(DmgalError, match="The libraries of ONNX are missing") as caught:
        exported._require_onnx()
    assert "pip install 'dmgal[onnx]'" in str(caught.value)
    (tmp_path / "file").write_text("")
    assert main(["export", str(runs["smga"]), "--format", "torch", "--out", str(tmp_path / "file")]) == 2
    assert "The export cannot be written" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "no run")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_model_that_cannot_be_traced_gives_one_message(tmp_path):
    program = exported._Program(torch.nn.LSTM(2, 2), "encode", "torch")
    with pytest.raises(DmgalError, match=r"cannot be exported(.|\n)*encode: "):
        program.write(tmp_path, ("no tensor",), (None,))
