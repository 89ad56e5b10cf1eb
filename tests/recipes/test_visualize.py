"""The command ``dmgal visualize``: what it draws of each kind of input, and its messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmgal.cli import main
from dmgal.recipes.run.gallery import load_model, read_frames
from dmgal.videos.generated import write_video
from dmgal.visualization import record
from dmgal.visualization.maps import attention_across


@pytest.fixture
def actions(frame_folders: Path, tmp_path: Path) -> Path:
    """A folder of two classes with two clips each."""
    for folder in sorted((frame_folders / "test").iterdir())[:2]:
        (tmp_path / "actions").mkdir(exist_ok=True)
        (tmp_path / "actions" / folder.name).mkdir()
        for clip in ("0", "1"):
            (tmp_path / "actions" / folder.name / clip).symlink_to(folder / clip)
    return tmp_path / "actions"


def test_a_task_is_drawn_with_a_run(save_run, actions, frame_folders, tmp_path, capsys):
    run, query = save_run(tmp_path / "run", "dmgal_adapter"), sorted((frame_folders / "test").iterdir())[0] / "2"
    out = tmp_path / "task.png"
    assert main(["visualize", str(run), str(actions), str(query), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > 600
    assert "task.png" in capsys.readouterr().out
    assert main(["visualize", str(run), "--list"]) == 0
    assert "cmga.3" in capsys.readouterr().out
    model = load_model(run)
    clips = torch.stack([read_frames(model, clip) for clip in (*sorted(actions.rglob("[01]")), query)])
    shares = attention_across(record(model.recognizer, clips, num_support=4)).sum(dim=(2, 3))
    torch.testing.assert_close(shares, torch.ones_like(shares))


@pytest.mark.slow
def test_other_inputs_are_drawn_without_a_run(actions, tmp_path):
    gallery, one, other = tmp_path / "g.safetensors", *sorted(actions.rglob("[01]"))[::2]
    assert main(["enroll", str(actions), "--out", str(gallery), "--quiet"]) == 0
    for words, name in (
        ([one, "--show", "attention"], "a.gif"),
        ([one, other, "--frame", "2"], "b.png"),
        ([actions, one, "--show", "gallery"], "c.svg"),
        ([gallery, one], "d.png"),
    ):
        assert main(["visualize", *map(str, words), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 3000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CLIP", "--layer", "smga.9"], "Did you mean smga."),
        (["CLIP", "--adapter", "None", "--show", "attention"], "this model has none"),
        (["CLIP", "--show", "task"], "cannot be shown"),
        (["CLIP", "--out", "a.pdf"], "in this format"),
        (["STILL"], "at least two frames"),
        ([], "nothing to show"),
        (["CLIP", "CLIP", "CLIP"], "too many paths"),
        (["g.safetensors", "CLIP", "--out", "a.gif"], "has no film"),
        (["CLIP", "CLIP", "--frame", "99"], "no such frame"),
        (["NOTHING"], "no such file"),
    ],
)
def test_mistakes_have_clear_messages(words, message, frame_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = next((frame_folders / "test").iterdir()) / "0"
    write_video(tmp_path / "still.mp4", torch.from_numpy(np.full((1, 3, 48, 48), 9, dtype=np.uint8)))
    paths = {"CLIP": str(clip), "STILL": "still.mp4", "NOTHING": "nothing.mp4"}
    assert main(["visualize", *(paths.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err
