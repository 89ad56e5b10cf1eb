"""Tests of the bundled CLIP: it loads through open_clip's factory and has the reported accuracy."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from dmgal.backbones.tiny_clip import FOLDER
from dmgal.recipes.tiny_clip.train import ATTRIBUTES, describe, normalization, stills, zero_shot
from dmgal.videos.moving_shapes.drawing import Poses, draw, random_appearance

REPORT = json.loads((FOLDER / "training.json").read_text())


@pytest.fixture(scope="module")
def model():
    return open_clip.create_model(f"local-dir:{FOLDER}").eval()


@pytest.fixture(scope="module")
def tokenize():
    return open_clip.get_tokenizer(f"local-dir:{FOLDER}")


def test_weights_are_small(model):
    assert REPORT["parameters"]["all"] == sum(p.numel() for p in model.parameters()) < 2e6
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 8e6


@pytest.mark.slow
def test_zero_shot_accuracy_matches_the_report(model, tokenize):
    measured = zero_shot(model, tokenize, normalization(FOLDER), seed=77, count=1000)
    assert measured.keys() == REPORT["zero_shot"].keys()
    for attribute, result in measured.items():
        reported = REPORT["zero_shot"][attribute]["accuracy"]
        assert result["accuracy"] == pytest.approx(reported, abs=0.06), attribute  # 4 standard errors of 1000 stills


def test_vocabulary_covers_all_captions(tokenize):
    _, texts, _ = next(stills(200, 16, seed=5))
    unknown = tokenize.tokenizer.unk_token_id
    assert not (tokenize(texts) == unknown).any()
    assert (tokenize(["a zebra"]) == unknown).any()


def test_captions_describe_the_pose():
    generator = torch.Generator().manual_seed(0)
    appearance = random_appearance(1, generator)
    poses = Poses(*(torch.tensor([[value]]) for value in (-0.8, 0.0, 0.3, torch.pi / 2)))
    facts = {name: index.item() for name, index in describe(appearance, poses).items()}
    words = {a.name: a.words[facts[a.name]] for a in ATTRIBUTES}
    assert (words["column"], words["row"], words["size"], words["heading"]) == ("leftmost", "middle", "medium", "east")


def test_shape_is_drawn_at_its_pose():
    generator = torch.Generator().manual_seed(0)
    appearance = random_appearance(40, generator)
    position = torch.tensor([0.6, -0.5])
    poses = Poses(
        *(value.expand(40, 2).clone() for value in (position[0:1], position[1:2], torch.tensor([0.25]), torch.zeros(1)))
    )
    moved = Poses(poses.x - 1.0, poses.y, poses.size, poses.angle)
    frames, moved_frames = (draw(p, appearance, 48, torch.Generator().manual_seed(1)).float() for p in (poses, moved))
    changed = (frames - moved_frames).abs().mean((0, 1, 2))  # the nuisances are equal, so only the shape differs
    rows, columns = changed.sum(1), changed.sum(0)
    center = (torch.arange(48) + 0.5) / 48 * 2 - 1
    assert (center * rows).sum() / rows.sum() == pytest.approx(-0.5, abs=0.1)
    assert (center * columns).sum() / columns.sum() == pytest.approx(0.1, abs=0.1)  # the middle of 0.6 and -0.4
    assert columns[center > 0.4].mean() > 5 * columns[(center > 0.0) & (center < 0.2)].mean()
