"""Example scripts run with few steps, as `accelerate launch` and torchrun start them, and print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import forked
import pytest
from safetensors import safe_open

from dmgal.videos.moving_shapes.generate import generate_moving_shapes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ACCELERATE = "from accelerate.commands.accelerate_cli import main; main()"
LAUNCH = ["launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]
TORCHRUN = "from torch.distributed.run import main; main()"
CLIPS = "3"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moving shapes with few clips per class, as the scripts generate them by ``--clips 3``."""
    folder = tmp_path_factory.mktemp("data") / "moving_shapes"
    generate_moving_shapes(folder, clips_per_class=int(CLIPS), workers=1, progress=False)
    return folder


def launched(script: str, *words: str, processes: int = 1) -> str:
    """Run a script in as many processes, and return what it printed."""
    command = ["-c", ACCELERATE, *LAUNCH]
    if processes > 1:
        command = ["-c", TORCHRUN, "--nproc_per_node", str(processes), "--master_port", str(forked.free_port())]
    done = forked.run([*command, str(EXAMPLES / script), *words], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_script_states_its_idea_and_its_command() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) >= 6
    listed = (EXAMPLES / "README.md").read_text()
    for script in scripts:
        text = script.read_text()
        assert f"examples/{script.name}" in text and f"`{script.name}`" in listed, script.name
        assert text.startswith('"""Idea: ') or script.name == "onnx_recognize.py", script.name


@pytest.mark.slow
def test_custom_vit_gives_the_same_logits_in_a_new_process(shapes: Path, tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path / "run"), "--data", str(shapes)]
    trained = launched("custom_vit.py", "train", *flags, "--steps", "2", "--clips", CLIPS)
    again = forked.run([str(EXAMPLES / "custom_vit.py"), "recognize", *flags])
    assert trained.count("tensor(") == 1 and again.stdout == trained[trained.index("tensor(") :], again.stderr


@pytest.mark.slow
def test_peft_loop_trains_in_two_processes(shapes: Path, tmp_path: Path) -> None:
    flags = ["--data", str(shapes), "--clips", CLIPS, "--out", str(tmp_path / "adapter"), "--steps", "2"]
    printed = launched("peft_loop.py", *flags, processes=2)
    assert len(re.findall(r"step \d: loss \d\.\d+, accuracy \d", printed)) == 2
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_own_objective_logs_its_loss(shapes: Path, tmp_path: Path) -> None:
    flags = ["--data", str(shapes), "--clips", CLIPS, "--out", str(tmp_path / "run"), "--steps", "2"]
    printed = launched("own_objective.py", *flags)
    assert re.search(r"reversal loss: \d.\d+ at first", printed) and "pairs of reversals" in printed


@pytest.mark.slow
def test_compare_adapters_narrows_the_interval(shapes: Path, tmp_path: Path) -> None:
    flags = ["--data", str(shapes), "--clips", CLIPS, "--out", str(tmp_path), "--steps", "1", "--episodes", "200"]
    printed = launched("compare_adapters.py", *flags)
    unpaired, paired = (float(re.search(rf" {kind}: .* ± ([\d.]+)", printed)[1]) for kind in ("unpaired", "paired"))
    assert paired < unpaired


@pytest.mark.slow
def test_reversal_score_is_lowest_without_order(shapes: Path) -> None:
    printed = launched("reversal_score.py", "--data", str(shapes), "--clips", CLIPS, "--episodes", "500")
    scores = {line[:22].replace(" ", ""): float(line[22:].split("±")[0]) for line in printed.splitlines()}
    assert len(scores) == 4 and scores["frozen,BiMHM"] + 5 < min(scores["frozen,OTAM"], scores["motionadapter,BiMHM"])


@pytest.mark.slow
def test_features_of_two_processes_are_in_order(shapes: Path, tmp_path: Path) -> None:
    test_clips, out = shapes / "test", tmp_path / "features.safetensors"
    printed = launched("features.py", "--folder", str(test_clips), "--out", str(out), processes=2)
    assert f"features (72, 8, 128) of 24 classes: {out}" in printed
    with safe_open(out, framework="pt") as file:
        assert file.get_tensor("labels").tolist() == [label for label in range(24) for _ in range(int(CLIPS))]
        features = file.get_tensor("features")
    alone = forked.run([str(EXAMPLES / "features.py"), "--folder", str(test_clips), "--out", str(out)])
    assert alone.returncode == 0, alone.stderr
    with safe_open(out, framework="pt") as file:
        assert (features - file.get_tensor("features")).abs().max() < 1e-4
