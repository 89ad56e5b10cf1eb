"""``dmgal evaluate --generalized``: novel classes beside all base classes."""

from __future__ import annotations

import json

import pytest
import torch

from dmgal.cli import main
from dmgal.episodes.evaluation import Evaluation
from dmgal.episodes.evaluation.accuracy import Answers
from dmgal.episodes.sampler import NovelBesideBase
from dmgal.errors import DmgalError
from dmgal.recipes.run.generalized import Generalized, harmonic_mean_of

LABELS = [label for label in range(6) for _ in range(4)]


def test_all_base_classes_come_first_and_novel_ones_are_drawn():
    sampler = NovelBesideBase([0, 1, 2], [3, 4, 5], LABELS, 2, 1, 1, 50, seed=0)
    episodes = list(sampler)
    assert all(episode.classes[:3] == (0, 1, 2) and len(episode.query) == 5 for episode in episodes)
    assert {tuple(sorted(episode.classes[3:])) for episode in episodes} == {(3, 4), (3, 5), (4, 5)}
    assert episodes[7] == NovelBesideBase([0, 1, 2], [3, 4, 5], LABELS, 2, 1, 1, 50, seed=0)[7]
    for base, num_novel in (([], 2), ([0], 4), ([0], 0)):
        with pytest.raises(DmgalError, match="beside base classes"):
            NovelBesideBase(base, [3, 4, 5], LABELS, num_novel, 1, 1, 50, seed=0)


def test_accuracies_are_those_of_the_queries_of_each_kind():
    columns = {  # two episodes of two base queries and one novel query each
        "episode": [0, 0, 0, 1, 1, 1],
        "video": [0, 1, 2, 3, 4, 5],
        "truth": [0, 1, 2, 0, 1, 3],
        "predicted": [0, 2, 2, 0, 1, 0],
    }
    answers = Answers(**{name: torch.tensor(row) for name, row in columns.items()}, offered=torch.empty(2, 0))
    found = Generalized.of(Evaluation(torch.tensor([2 / 3, 2 / 3]), "", answers), num_base=2)
    assert (found.base.mean, found.novel.mean) == (75.0, 50.0)
    assert found.harmonic_mean.mean == pytest.approx(60.0)


def test_interval_of_the_harmonic_mean_is_that_of_resampled_episodes():
    generator = torch.Generator().manual_seed(0)
    shared = torch.rand(400, generator=generator, dtype=torch.float64)
    base = (0.7 * shared + 0.3 * torch.rand(400, generator=generator, dtype=torch.float64)).clamp(0, 1)
    novel = 0.5 * shared
    rows = torch.randint(400, (4000, 400), generator=generator)
    first, second = base[rows].mean(1), novel[rows].mean(1)
    deviation = (200 * first * second / (first + second)).std().item()
    assert harmonic_mean_of(base, novel).half_width == pytest.approx(1.96 * deviation, rel=0.05)
    assert harmonic_mean_of(torch.zeros(3), torch.zeros(3)).mean == 0.0


def test_command_reports_both_kinds(tmp_path, save_run, frame_folders, capsys):
    run = save_run(tmp_path / "run", "smga")
    out = tmp_path / "result.json"
    words = ["evaluate", str(run), "--generalized", "--episodes", "20", "--quiet", "--out", str(out)]
    assert not main(words)
    printed = capsys.readouterr().out
    assert "2 test classes beside 6 base classes" in printed and "harmonic mean" in printed
    assert "videos that the run was trained on" in printed
    result = json.loads(out.read_text())
    found = result["generalized"]
    assert found["base_classes"] == 6 and found["episodes"] == 20
    low, high = sorted(found[name]["percent"] for name in ("base", "novel"))
    assert low <= found["harmonic_mean"]["percent"] <= high
    assert result["protocol"]["base_videos"] == "seen in training"
    assert main([*words, "--exact"]) != 0
    assert "on a number of episodes" in capsys.readouterr().err
    lines = (frame_folders / "split.csv").read_text().splitlines()
    (tmp_path / "novel.csv").write_text("\n".join(line for line in lines if not line.startswith(("train", "val"))))
    assert main([*words, "--data.split-file", str(tmp_path / "novel.csv")]) == 2
    assert "There are no base classes" in capsys.readouterr().err
