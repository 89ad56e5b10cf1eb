"""A backbone of videos through the commands: adapter and head see its steps in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from dmgal.cli import main


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random VideoMAE for 4 frames of 32 pixels, in steps of 2 frames."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.VideoMAEConfig(
        **sizes, image_size=32, patch_size=8, num_frames=4, tubelet_size=2, use_mean_pooling=False
    )
    folder = tmp_path_factory.mktemp("videomae")
    transformers.VideoMAEModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 32}}))
    return folder


def test_it_trains_and_is_evaluated(tmp_path, data_flags, videomae, capsys):
    words = ["train", "method/dmgal_adapter", *data_flags, "--backbone.name", str(videomae), "--train.steps", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert saved["num_frames"] == 2
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "4", "--quiet"]) == 0


def test_another_number_of_frames_is_refused_at_the_start(tmp_path, data_flags, videomae, capsys):
    words = ["train", "method/dmgal_adapter", *data_flags, "--backbone.name", str(videomae), "--data.num-frames", "8"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "clips of 8 frames" in error and "--data.num-frames 4" in error and "Traceback" not in error
